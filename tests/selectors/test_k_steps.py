"""Selectors of a fixed number of steps, against loops and by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from support.selector_batches import ENTROPY, STEP, VALID, batches, budgets, chosen, fast, lengths, run, top, trajectory
from tensordict import TensorDict

from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.k_steps import FirstK, LastK, UniformSteps
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.selectors.top_k import EntropyTopK


@fast
@given(batches, budgets)
def test_fixed_budgets_against_loops(data: TensorDict, k: int) -> None:
    entropy = [row[:n] for row, n in zip(data[ENTROPY].tolist(), lengths(data), strict=True)]
    assert chosen(run(EntropyTopK(k), data)) == [top(row, k) for row in entropy]
    assert chosen(run(FirstK(k), data)) == [list(range(len(row)))[:k] for row in entropy]
    assert chosen(run(LastK(k), data)) == [list(range(len(row)))[-k:] for row in entropy]
    assert chosen(run(AllSteps(), data)) == [list(range(len(row))) for row in entropy]
    width = min(k, data[VALID].shape[1])
    for selector in (EntropyTopK(k), FirstK(k), LastK(k), UniformSteps(k), RandomSteps(k)):
        assert run(selector, data)[STEP].shape[1] == width
    assert run(AllSteps(), data)[STEP].shape[1] == max(lengths(data))


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [
        (9, 3, [0, 4, 8]),
        (8, 4, [0, 2, 5, 7]),
        (4, 3, [0, 2, 3]),
        (5, 2, [0, 4]),
        (5, 1, [2]),
        (4, 1, [1]),
        (1, 3, [0]),
        (2, 5, [0, 1]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_uniform_steps_by_hand(n: int, k: int, expected: list[int]) -> None:
    assert chosen(run(UniformSteps(k), trajectory([[1.0] * n], spare=3))) == [expected]


@pytest.mark.parametrize("k", range(1, 14))
def test_uniform_steps_are_even(k: int) -> None:
    rows = chosen(run(UniformSteps(k), trajectory([[1.0] * n for n in range(1, 14)])))
    for n, steps in enumerate(rows, start=1):
        assert len(steps) == min(n, k)
        if len(steps) > 1:
            gaps = {b - a for a, b in itertools.pairwise(steps)}
            assert (steps[0], steps[-1]) == (0, n - 1)
            assert max(gaps) - min(gaps) <= 1
