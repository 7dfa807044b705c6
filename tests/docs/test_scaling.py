"""The tables of the page about large models on many GPUs are those that its command writes."""

from __future__ import annotations

import re
import sys

import pytest
from support.paths import ROOT

from dlmrl_kit.training import shapes

sys.path.insert(0, str(ROOT / "benchmarks"))

import cluster


@pytest.mark.thorough
def test_the_tables_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_from_hub", lambda path: None)
    tables = re.findall(r"(?:^\|.*\n)+", (ROOT / "docs" / "scaling.md").read_text(), re.MULTILINE)
    assert tables[1:] == [cluster.choices() + "\n", cluster.scaling() + "\n"]
