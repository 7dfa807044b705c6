"""Checks of constructor parameters; imports nothing, so that cheap modules can use it."""

from __future__ import annotations

from typing import Any


def check(condition: bool, component: object, parameter: str, value: Any, expected: str) -> None:
    """Raises a ``ValueError`` that names component, parameter, value and what was expected, unless ``condition``."""
    if not condition:
        raise ValueError(f"{type(component).__name__}.{parameter} must be {expected}, got {value!r}")
