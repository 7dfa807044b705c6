"""What docs/algorithms.md says of the recipe of a plugin."""

from __future__ import annotations

from support.paths import ROOT

from dlmrl_kit.report.algorithms_page import component_table, training_recipes


def assert_in_tables_of_algorithms(recipe: str) -> None:
    """Checks that the page has the recipe's row of components, and one of what the audit says."""
    page = ROOT / "docs" / "algorithms.md"
    text = page.read_text(encoding="utf-8")
    assert recipe in training_recipes()
    assert component_table([recipe], page).splitlines()[-1] in text
    assert f"| {recipe} |" in text.partition("<!-- audit -->")[2]
