"""Evaluations: their intervals, and their way through JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluations import evaluation

from dlmrl_kit.core.results import EvalResult, wilson_interval


@pytest.mark.parametrize(
    ("solved", "size", "low", "high"),
    [
        (160, 400, 0.3531615288938135, 0.44874092997304577),
        (0, 10, 0.0, 0.27753279986288926),
        (10, 10, 0.7224672001371109, 1.0),
        (7, 9, 0.4525889691069889, 0.9367748928821533),
    ],
)
def test_wilson_interval_against_scipy(solved: int, size: int, low: float, high: float) -> None:
    """Computed with scipy 1.17.1: ``binomtest(solved, size).proportion_ci(method="wilson")``."""
    assert wilson_interval(solved / size, size) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize("size", range(1, 500, 7))
def test_wilson_interval_contains_what_was_measured(size: int) -> None:
    assert (wilson_interval(0.0, size)[0], wilson_interval(1.0, size)[1]) == (0.0, 1.0)


def test_wilson_interval_of_nothing() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_solves_its_equation(counts: tuple[int, int]) -> None:
    """Its ends are the proportions that a two-sided score test at 5% just does not reject."""
    solved, size = counts
    low, high = wilson_interval(solved / size, size)
    assert 0 <= low <= solved / size + 1e-12
    assert solved / size - 1e-12 <= high <= 1
    for end in (low, high):
        assert (solved / size - end) ** 2 == pytest.approx(1.959963985**2 * end * (1 - end) / size, abs=1e-9)


def test_evaluation_survives_json() -> None:
    result = evaluation(0.5, pass_at_k={1: 0.5, 8: 0.75})
    data = json.loads(json.dumps(result.to_json()))
    assert EvalResult.from_json(data) == result
    assert data["interval"] == list(result.interval())


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "only 1 example: each is 100 points"),
        (4, "only 4 examples: each is 25 points"),
        (29, "only 29 examples: each is 3.45 points"),
        (30, ""),
        (400, ""),
    ],
)
def test_few_examples_are_said_to_mean_little(size: int, text: str) -> None:
    result = evaluation(0.5, size=size)
    low, high = result.interval()
    ends = f", and the accuracy is anywhere from {100 * low:.0f}% to {100 * high:.0f}%" if text else ""
    assert result.caution() == text + ends
    assert result.to_json().get("caution", "") == result.caution()
    assert EvalResult.from_json(result.to_json()) == result
