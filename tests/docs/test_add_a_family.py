"""docs/add-a-family.md lists every check of families, and every family is in the tables of docs/real-models.md."""

from __future__ import annotations

import re

from support.paths import ROOT

from dlmrl_kit.testing.families import family_checks


def test_the_page_lists_every_check() -> None:
    page = (ROOT / "docs" / "add-a-family.md").read_text()
    assert re.findall(r"^\| `(check_\w+)` \|", page, re.MULTILINE) == [str(check) for check in family_checks()]
