"""Imports of code need permission."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.dummy_components import COMPLETE
from support.recipe_files import body, refused, refused_text, write

from dlmrl_kit.core import registry
from dlmrl_kit.recipe.catalogue import find
from dlmrl_kit.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("dummies")


class TestImports:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        package = tmp_path / "lib" / "recipe_test_extras"
        package.mkdir(parents=True)
        write(package / "__init__.py", "VALUE = 1\n")
        write(package / "parts.py", "")
        write(package / "broken.py", "raise RuntimeError('boom')\n")
        write(package / "exits.py", "raise SystemExit(3)\n")
        monkeypatch.syspath_prepend(package.parent)
        return "recipe_test_extras"

    def test_refused_unless_allowed(self, tmp_path: Path, module: str):
        for statement in (f"import {module}", f"from {module} import parts"):
            refused_text(tmp_path, f"# x\n{statement}\n{COMPLETE}", 2, "--allow-imports", f"`{statement}` runs code")
        assert module not in sys.modules

    def test_allowed(self, tmp_path: Path, module: str):
        text = f"import {module}.parts\nfrom {module} import VALUE\n" + COMPLETE
        recipe = load_recipe(write(tmp_path / "a.gin", text), allow_imports=True)
        assert f"{module}.parts" in sys.modules
        resolved = write(tmp_path / "b.gin", recipe.text())
        refused(resolved, "--allow-imports")
        assert body(load_recipe(resolved, allow_imports=True)) == body(recipe)
        recipe.build()

    @pytest.mark.parametrize(
        ("statement", "part"),
        [
            ("import not_there_at_all", "ModuleNotFoundError"),
            ("from recipe_test_extras import nothing", "ModuleNotFoundError"),
            ("import recipe_test_extras.broken", "RuntimeError: boom"),
            ("import recipe_test_extras.exits", "SystemExit"),
            ("from __gin__ import dynamic_registration", "failed"),
        ],
    )
    def test_failing(self, tmp_path: Path, module: str, statement: str, part: str):
        refused_text(tmp_path, f"{statement}\n{COMPLETE}", 1, part, allow_imports=True)

    def test_components_must_inherit_from_the_base_class_of_their_kind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        code = "from dlmrl_kit import register\n\n@register('cache')\nclass PlainCache: ...\n"
        write(tmp_path / "recipe_test_cache.py", code)
        monkeypatch.syspath_prepend(tmp_path)
        text = f"import recipe_test_cache\n{COMPLETE}Algorithm.cache = @PlainCache()\n"
        reason = "needs a cache: PlainCache must inherit from dlmrl_kit.caches.base.Cache"
        try:
            refused_text(tmp_path, text, "Algorithm.cache", reason, allow_imports=True)
        finally:
            registry.unregister(find("PlainCache"))
