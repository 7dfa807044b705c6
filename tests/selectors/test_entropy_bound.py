"""The entropy bound: against a loop, monotone, and it holds."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.selector_batches import COMMITTED, ENTROPY, chosen, fast, floats, rows_of, run, trajectory

from dlmrl_kit.selectors.entropy_bound import EntropyBound


@fast
@given(rows_of, st.integers(0, 30))
def test_bound_against_a_loop(rows: list[list[float]], quarter: int) -> None:
    data, epsilon = trajectory(rows, spare=1), quarter / 4
    expected = []
    for i, row in enumerate(rows):
        summed = [h * c for h, c in zip(row, data[COMMITTED][i].tolist(), strict=False)]
        kept = list(range(len(row)))
        for t in reversed(sorted(kept, key=lambda t: (-summed[t], t))[1:]):  # smallest first, at least one is kept
            if sum(summed[s] for s in range(len(row)) if s not in kept) + summed[t] > epsilon:
                break
            kept.remove(t)
        expected.append(kept)
    assert chosen(run(EntropyBound(epsilon), data)) == expected


def test_bound_counts_positions() -> None:
    """Step 1 has the lower mean entropy but commits more positions: step 0 is dropped."""
    data = trajectory([[0.5, 0.4, 1.0]])
    data[COMMITTED] = torch.tensor([[1, 3, 1]])
    assert chosen(run(EntropyBound(0.6), data)) == [[1, 2]]
    assert chosen(run(EntropyBound(0.0), data)) == [[0, 1, 2]]
    assert chosen(run(EntropyBound(100.0), data)) == [[1]]


@fast
@given(floats, st.floats(0, 10), st.floats(0, 10))
def test_bound_is_monotone_and_holds(rows: list[list[float]], a: float, b: float) -> None:
    data = trajectory(rows)
    summed = (data[ENTROPY].double() * data[COMMITTED]).tolist()
    strict, loose = (chosen(run(EntropyBound(epsilon), data)) for epsilon in sorted((a, b)))
    for i, row in enumerate(rows):
        assert set(loose[i]) <= set(strict[i])
        for epsilon, kept in zip(sorted((a, b)), (strict[i], loose[i]), strict=True):
            assert sum(summed[i][t] for t in range(len(row)) if t not in kept) <= epsilon * (1 + 1e-12)
