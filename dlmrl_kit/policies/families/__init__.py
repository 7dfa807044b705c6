"""Families of checkpoints: one module each, listed in ``dlmrl_kit.policies.loading``."""
