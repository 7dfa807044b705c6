"""An example plugin of dlmrl_kit. Importing this package registers nothing; ``dlmrl_example.components`` does."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

RECIPE = Path(__file__).resolve().parent / "recipes" / "example.gin"
"""The recipe that ships with the plugin."""
