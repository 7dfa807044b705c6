"""Dummy components for the tests of recipes, and an empty folder of recipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.dummy_components import DUMMIES

from dlmrl_kit.algorithm import dataflow
from dlmrl_kit.algorithm.bases import BASE_CLASSES
from dlmrl_kit.core import registry
from dlmrl_kit.recipe import load as recipe_module


@pytest.fixture(scope="module")
def dummies() -> Iterator[None]:
    """Registers the dummies for one module only: other tests go through everything that is registered.

    Dummies run nothing, so they neither inherit from the base classes of their kinds nor fit together.
    """
    patch = pytest.MonkeyPatch()
    for check in ("check_groups", "make_plan"):
        patch.setattr(dataflow, check, lambda _: None)
    for cls, kind in DUMMIES.items():
        patch.setitem(BASE_CLASSES, kind, object)
        registry.register(kind)(cls)
    yield
    patch.undo()
    for entry in registry.registered():
        if entry.cls in DUMMIES:
            registry.unregister(entry)


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of recipes in place of the kit's."""
    folder = tmp_path / "recipes"
    (folder / "base").mkdir(parents=True)
    monkeypatch.setattr(recipe_module, "recipes_dir", lambda: folder)
    return folder
