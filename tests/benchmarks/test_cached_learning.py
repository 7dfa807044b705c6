"""What the checked-in runs with caches say, and how they are summed up."""

from __future__ import annotations

import csv
import sys

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import cached_learning

STORED = ROOT / "benchmarks" / "cached_learning" / "runs.csv"


def row(variant: str, seed: int, accuracy: float, tokens: float) -> dict[str, object]:
    values = {"accuracy": accuracy, "last_rewards": 2 * accuracy, "tokens_per_update": tokens}
    return {"setting": "blocks", "variant": variant, "seed": seed, "effective_sample_size": 0.5, **values}


def test_differences_are_paired_by_seed() -> None:
    """A difference that is the same for all seeds has an interval of no width, however the seeds differ."""
    exact = [row("exact", seed, 0.1 * seed, 10.0) for seed in range(4)]
    cached = [row("DualCache", seed, 0.1 * seed + 0.25, 4.0) for seed in (3, 1, 0, 2)]
    first, found = cached_learning.summary([*exact, *cached], "blocks")
    assert (first["variant"], first["accuracy_difference"], first["tokens_over_exact"]) == ("exact", 0, 1)
    assert (found["variant"], found["seeds"]) == ("DualCache", 4)
    assert found["tokens_over_exact"] == pytest.approx(0.4)
    for name, wanted in (("accuracy", 0.25), ("last_rewards", 0.5)):
        assert found[f"{name}_difference"] == pytest.approx(wanted)
        assert found[f"{name}_low"] == pytest.approx(wanted)
        assert found[f"{name}_high"] == pytest.approx(wanted)
    assert cached_learning.summary([*exact, *cached], "shipped") == []


def test_the_stored_runs_take_less_than_half_of_the_tokens() -> None:
    """As docs/performance.md says; their accuracies are compared there."""
    rows = list(csv.DictReader(STORED.read_text().splitlines()))
    tokens = {(row["variant"], row["seed"]): float(row["tokens_per_update"]) for row in rows}
    seeds = {seed for variant, seed in tokens if variant == "AdaptiveRefresh"}
    assert seeds
    for seed in seeds:
        assert tokens["AdaptiveRefresh", seed] < 0.5 * tokens["exact", seed]
