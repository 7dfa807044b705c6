"""Dummy components for the tests of recipes, and an empty folder of recipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.dummy_components import DUMMIES

from dlmrl_kit.core import registry
from dlmrl_kit.recipe import load as recipe_module


@pytest.fixture(scope="module")
def dummies() -> Iterator[None]:
    """Registers the dummies for one module only: other tests go through everything that is registered."""
    from dlmrl_kit.algorithm import algorithm

    patch = pytest.MonkeyPatch()
    patch.setattr(registry, "load_builtin", lambda: None)
    patch.setattr(algorithm.dataflow, "plan", lambda _: None)
    for cls, kind in DUMMIES.items():
        registry.register(kind)(cls)
    yield
    patch.undo()
    for entries in registry._COMPONENTS.values():
        entries[:] = [c for c in entries if c.cls not in DUMMIES]
    for key in [key for key, entries in registry._COMPONENTS.items() if not entries]:
        del registry._COMPONENTS[key]


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of recipes in place of the kit's."""
    folder = tmp_path / "recipes"
    (folder / "base").mkdir(parents=True)
    monkeypatch.setattr(recipe_module, "recipes_dir", lambda: folder)
    return folder
