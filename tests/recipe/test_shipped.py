"""The recipes of the kit are short and say what they are."""

from __future__ import annotations

import pytest
from support.kit_recipes import kit_recipes
from support.paths import ROOT


def test_recipes_say_what_they_are_in_few_lines() -> None:
    for path in (ROOT / "recipes").glob("*.gin"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), path
        assert len(lines) <= 35, path


RECIPES = kit_recipes()
MAX_LINES = 32


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_what_it_is(name: str) -> None:
    lines = (ROOT / "recipes" / f"{name}.gin").read_text().splitlines()
    body = [line for line in lines if line and not line.startswith("#")]
    assert len(body) <= MAX_LINES
    assert lines[0].startswith("# ")
    if name != "reinforce_exact":
        assert "arXiv" in "\n".join(line for line in lines if line.startswith("#"))
