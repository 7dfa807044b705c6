"""The tables of docs/algorithms.md are current."""

from __future__ import annotations

import pytest
from support.kit_recipes import kit_recipes
from support.paths import ROOT

from dlmrl_kit.recipe.moved import MOVED
from dlmrl_kit.report.algorithms_page import component_table

PAGE = ROOT / "docs" / "algorithms.md"
RECIPES = kit_recipes()
OF_PLUGINS = {path.stem for path in ROOT.glob("plugins/*/src/*/recipes/*.gin")} & {*MOVED}
"""The rows of plugins are tested by these, once they are installed."""


def rows(table: str) -> dict[str, str]:
    """The rows of a table of the page by the name of the recipe."""
    text = PAGE.read_text().partition(f"<!-- {table} -->")[2].partition("<!-- end -->")[0]
    lines = [line for line in text.splitlines()[3:] if line.startswith("|")]
    return {line.split("|")[1].strip().partition("]")[0].removeprefix("["): line for line in lines}


def test_the_table_of_components_is_current() -> None:
    expected = component_table(RECIPES, PAGE).splitlines()[2:]
    assert [line for name, line in rows("components").items() if name in RECIPES] == expected


@pytest.mark.parametrize("table", ["components", "audit"])
def test_every_recipe_has_a_row(table: str) -> None:
    assert OF_PLUGINS
    assert list(rows(table)) == sorted({*RECIPES, *OF_PLUGINS})
