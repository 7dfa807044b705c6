"""Registrations that end with a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dlmrl_kit.core import registry
from dlmrl_kit.recipe.catalogue import components


@pytest.fixture
def registrations_end() -> Iterator[None]:
    """Takes back what a test registers."""
    components()
    before = set(registry.registered())
    yield
    for entry in set(registry.registered()) - before:
        registry.unregister(entry)
