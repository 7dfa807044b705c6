"""Approximate key-value caches for rollouts of models with bidirectional attention."""
