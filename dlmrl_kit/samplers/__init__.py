"""Samplers: they generate trajectories, and know the exact log-probability of each of their actions."""
