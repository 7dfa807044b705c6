"""A module of scorers that misbehave."""

from support.bad_scorers import functions

__all__ = ["functions"]
