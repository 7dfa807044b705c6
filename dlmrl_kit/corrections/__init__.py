"""Corrections: importance weights for rollouts that were not sampled from the policy itself."""
