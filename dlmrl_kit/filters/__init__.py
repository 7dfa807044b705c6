"""Filters: which samples of a rollout are trained at all."""
