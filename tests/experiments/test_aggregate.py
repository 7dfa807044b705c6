"""Estimates and intervals over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.experiments.aggregate import COVERAGE, Estimate, _measured, estimate, interval


def test_estimates_are_the_same_for_the_same_values() -> None:
    assert estimate([]) == Estimate(None, None, None, 0)
    assert estimate([0.3]) == Estimate(0.3, None, None, 1)
    assert estimate([0.1, 0.1, 0.1]) == Estimate(0.1, 0.1, 0.1, 3)
    assert estimate([0.1, 0.4]) == Estimate(0.25, 0.1, 0.4, 2)
    values = np.random.default_rng(0).normal(size=40).tolist()
    found = estimate(values)
    assert found == estimate(values)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * np.std(values) / np.sqrt(40)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_stated_coverage_is_what_is_measured() -> None:
    for seeds in (2, 3, 5, 10):
        values = np.random.default_rng(seeds).normal(size=(seeds, 1500))
        low, high = interval(values.tolist(), resamples=599)
        covered = np.mean([a <= 0 <= b for a, b in zip(low, high, strict=True)])
        assert 100 * covered == pytest.approx(COVERAGE[seeds], abs=4)


@pytest.mark.parametrize(("size", "end"), [(29, " (so few that each is 3.45 points)"), (30, "")])
@pytest.mark.parametrize(("temperature", "how"), [(0.0, "greedy"), (0.7, "temperature 0.7")])
def test_accuracies_on_few_examples_are_said_to_be(size: int, end: str, temperature: float, how: str) -> None:
    decoding = {"temperature": temperature}
    after = EvalResult("heldout", size, 0.5, 0.5, decoding=decoding, task="Countdown")
    result = {"after": after.to_json(), "updates": 4}
    assert _measured([result, result]) == f"Countdown: {size} examples of heldout after 4 updates, {how}{end}"
