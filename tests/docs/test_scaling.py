"""The tables of the page about large models on many GPUs are those that its command writes."""

from __future__ import annotations

import re
import sys

import pytest
from support.paths import ROOT

from dlmrl_kit.training import shapes
from dlmrl_kit.training.cluster import Cluster
from dlmrl_kit.training.dry_run import job_of

sys.path.insert(0, str(ROOT / "benchmarks"))

import cluster
import scaling


def tables() -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", (ROOT / "docs" / "scaling.md").read_text(), re.MULTILINE)


@pytest.mark.thorough
def test_the_tables_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_from_hub", lambda path: None)
    assert tables()[1:3] == [cluster.choices() + "\n", cluster.scaling() + "\n"]


@pytest.mark.thorough
def test_the_counts_are_those_on_paper() -> None:
    """Which ``tests/training/test_scaling.py`` holds to what is counted."""
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in tables()[3].splitlines()[2:]]
    assert [(row[0], row[1]) for row in rows] == [(name, str(n)) for name in scaling.CASES for n in scaling.WORLDS]
    for name, world, prompts, calls, tokens, *_, reduced, gathered, scattered, _, idle in rows:
        number, sharding = scaling.CASES[name]
        assert prompts == str(number(int(world)))
        recipe = scaling.even(int(prompts), sharding)
        paper = scaling.on_paper(recipe, int(world))
        assert calls == ", ".join(str(part["forwards"]) for part in paper.work.values())
        assert tokens == f"{sum(part['tokens'] for part in paper.work.values()):,}"
        assert [reduced, gathered, scattered] == [f"{paper.sent.get(kind, 0):,}" for kind in scaling.SENT[:-1]]
        assert idle == f"{job_of(recipe, Cluster(int(world))).idle:.0%}"
