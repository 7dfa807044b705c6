"""Losses: the objectives that are minimised."""
