"""Approximate key-value caches for rollouts of models that attend both ways."""
