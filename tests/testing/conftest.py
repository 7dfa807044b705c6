"""Registers classes for one test, outside the kit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dlmrl_kit.core.registry import register, unregister
from dlmrl_kit.recipe.catalogue import components


@pytest.fixture
def registered() -> Iterator[Any]:
    """Registers classes for one test; they are outside the kit, and guarded as plugins are."""
    added = []

    def add(kind: str, cls: type, **claims: Any) -> Any:
        register(kind, **claims)(cls)
        added.append(cls)
        return cls

    yield add
    for entry in [entry for entry in components() if entry.cls in added]:
        unregister(entry)
