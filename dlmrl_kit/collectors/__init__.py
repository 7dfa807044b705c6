"""Collectors: where rollouts are sampled, other than in the process that trains."""
