"""Losses: the objective that is descended."""
