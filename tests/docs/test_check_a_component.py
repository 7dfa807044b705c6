"""docs/check-a-component.md lists every check."""

from __future__ import annotations

from support.paths import ROOT

from dlmrl_kit.core.registry import KINDS
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.testing import checks_for


def test_the_page_lists_every_check() -> None:
    page = (ROOT / "docs" / "check-a-component.md").read_text()
    for kind in KINDS:
        for check in checks_for(components(kind)[0].cls):
            assert f"`{check.name}`" in page, kind
