"""The tables of docs/algorithms.md are current."""

from __future__ import annotations

from support.paths import ROOT

from dlmrl_kit.report.algorithms_page import component_table, training_recipes

RECIPES = training_recipes()


def test_the_table_of_components_is_current() -> None:
    page = ROOT / "docs" / "algorithms.md"
    assert component_table(RECIPES, page) in page.read_text()


def test_every_recipe_has_a_row_in_the_table_of_audits() -> None:
    table = (ROOT / "docs" / "algorithms.md").read_text().partition("<!-- audit -->")[2].partition("<!-- end -->")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines()[3:] if line.startswith("|")] == RECIPES
