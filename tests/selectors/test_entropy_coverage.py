"""Entropy coverage: against a loop, monotone, and at its edges."""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.selector_batches import STEP, budgets, chosen, fast, floats, rows_of, run, top, trajectory

from dlmrl_kit.selectors.entropy_coverage import EntropyCoverage


@fast
@given(rows_of, st.integers(1, 20), st.one_of(st.none(), budgets))
def test_coverage_against_a_loop(rows: list[list[float]], twentieths: int, max_steps: int | None) -> None:
    alpha = Fraction(twentieths, 20)
    expected = []
    for row in rows:
        exact, count = [Fraction(h) for h in row], 1
        while sum(exact[t] for t in top(row, count)) < alpha * sum(exact):
            count += 1
        expected.append(top(row, count if max_steps is None else min(count, max_steps)))
    result = run(EntropyCoverage(float(alpha), max_steps), trajectory(rows, spare=2))
    assert chosen(result) == expected
    assert result[STEP].shape[1] == max(len(steps) for steps in expected)


@fast
@given(floats, st.floats(0.01, 1), st.floats(0.01, 1))
def test_coverage_is_monotone_and_covers(rows: list[list[float]], a: float, b: float) -> None:
    data = trajectory(rows)
    small, large = (chosen(run(EntropyCoverage(alpha), data)) for alpha in sorted((a, b)))
    for row, few, many in zip(rows, small, large, strict=True):
        assert set(few) <= set(many)
        assert sum(row[t] for t in many) >= max(a, b) * sum(row) * (1 - 1e-6)


@fast
@given(st.lists(st.lists(st.one_of(st.just(0.0), st.floats(0, 3)), min_size=1, max_size=8), min_size=1, max_size=3))
def test_full_coverage_keeps_exactly_the_steps_with_entropy(rows: list[list[float]]) -> None:
    expected = [[t for t, h in enumerate(row) if h > 0] or [0] for row in rows]
    assert chosen(run(EntropyCoverage(1.0), trajectory(rows, dtype=torch.float64))) == expected


def test_full_coverage_keeps_entropies_lost_in_rounding() -> None:
    data = trajectory([[1e-30, 3.0, 1e-20, 0.0, 5.0]])
    assert chosen(run(EntropyCoverage(1.0), data)) == [[0, 1, 2, 4]]
    assert chosen(run(EntropyCoverage(1 - 1e-6), data)) == [[1, 4]]


def test_full_coverage_of_long_rows_drops_steps_without_entropy() -> None:
    gen = torch.Generator().manual_seed(0)
    rows = [[*torch.rand(61, generator=gen, dtype=torch.float64).tolist(), 0.0, 0.0] for _ in range(20)]
    result = run(EntropyCoverage(1.0), trajectory(rows, dtype=torch.float64))
    assert chosen(result) == [list(range(61))] * 20


def test_coverage_is_not_upset_by_rounding() -> None:
    """0.9 of ten equal entropies is nine of them, though 1 - 0.9 < 0.1 in floating point."""
    assert chosen(run(EntropyCoverage(0.9), trajectory([[0.1] * 10]))) == [list(range(9))]


def test_negative_round_off_counts_as_no_entropy() -> None:
    assert chosen(run(EntropyCoverage(1.0), trajectory([[1.0, 5e-9, -1e-8, 2.0]]))) == [[0, 1, 3]]
