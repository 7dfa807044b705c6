"""Samplers: how a trajectory is generated, and the exact log-probability of what was done."""
