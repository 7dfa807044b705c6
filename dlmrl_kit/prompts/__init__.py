"""Prompt layouts: how a question becomes what a policy is given."""
