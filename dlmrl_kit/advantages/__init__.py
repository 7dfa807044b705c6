"""Advantages: how much better an action was than expected."""
