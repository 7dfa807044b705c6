"""Errors that are a user's to fix: the command line prints their text without a traceback and exits with 2."""

from __future__ import annotations


class UserError(Exception):
    """Something in a recipe, a command or a file is wrong; the message says what and what would be right."""


class RegistryError(UserError):
    """A kind or component that does not exist, is ambiguous, or is registered twice."""


class RecipeError(UserError):
    """A recipe that cannot be loaded, or whose components do not fit together."""


class CheckpointError(UserError):
    """A run folder or checkpoint that is missing, incomplete, or belongs to another recipe."""


class TrainingError(UserError):
    """Training cannot go on: non-finite losses in a row, or old and new log-probabilities that disagree."""
