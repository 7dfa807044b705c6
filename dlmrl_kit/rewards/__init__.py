"""Rewards: named numbers that a completion earns; a task adds them up."""
