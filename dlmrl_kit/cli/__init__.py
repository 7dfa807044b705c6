"""The ``dlmrl`` command."""

from dlmrl_kit.cli.app import main

__all__ = ["main"]
