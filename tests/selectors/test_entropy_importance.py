"""Importance sampling of steps: expectation by enumeration, probabilities, edges."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.seeds import seeded
from support.selector_batches import STEP, WEIGHT, Noise, batches, budgets, fast, floats, run, trajectory, weighted_sums
from tensordict import TensorDict

from dlmrl_kit.selectors import drawn_steps
from dlmrl_kit.selectors.entropy_importance import EntropyImportance


@pytest.mark.parametrize("k", [1, 2])
def test_importance_has_the_full_sum_as_expectation(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All k-tuples of an even grid of noise: q = (1, 2, 2, 3) / 8, and a grid of 8 hits each step exactly 8 q times."""
    grid = [(i + 0.5) / 8 for i in range(8)]
    noise = torch.tensor(list(itertools.product(grid, repeat=k)), dtype=torch.float64)
    monkeypatch.setattr(drawn_steps, "uniforms", Noise(noise))
    selector = EntropyImportance(k, floor=0.5)
    data = trajectory([[0.0, 1.0, 1.0, 2.0]] * len(noise), spare=2, dtype=torch.float64)
    expected = torch.tensor([0.125, 0.25, 0.25, 0.375, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(selector.probabilities(data)[0], expected, rtol=1e-14, atol=0)
    result = selector(seeded(data))
    values = torch.tensor([3.0, -1.0, 0.5, 7.0, 1e9, 1e9], dtype=torch.float64)
    torch.testing.assert_close(weighted_sums(result, values).mean(), values[:4].sum(), rtol=1e-14, atol=0)
    frequency = torch.bincount(result[STEP].flatten(), minlength=6).double() / result[STEP].numel()
    torch.testing.assert_close(frequency, expected, rtol=1e-14, atol=0)


@fast
@given(floats, st.floats(0.01, 1), st.integers(1, 5))
def test_importance_probabilities_and_weights(rows: list[list[float]], floor: float, k: int) -> None:
    """q against a loop; each step owns the noise interval of length q; probability * weight * k is 1 for every step."""
    data, selector = trajectory(rows, spare=1, dtype=torch.float64), EntropyImportance(k, floor)
    q = selector.probabilities(data)
    for i, row in enumerate(rows):
        total = sum(row)
        for t in range(q.shape[1]):
            share = (row[t] / total if total > 0 else 1 / len(row)) if t < len(row) else 0.0
            expected = (1 - floor) * share + floor / len(row) if t < len(row) else 0.0
            assert q[i, t].item() == pytest.approx(expected, rel=1e-12)
        upper, n = q[i].cumsum(-1), len(row)
        middle = upper[:n] - q[i, :n] / 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawn_steps, "uniforms", Noise(middle[:, None].expand(n, k)))
            result = selector(seeded(torch.cat([data[i : i + 1]] * n)))
        assert result[STEP].tolist() == [[t] * k for t in range(n)]
        torch.testing.assert_close(
            q[i, :n, None] * result[WEIGHT] * k, torch.ones(n, k, dtype=torch.float64), rtol=1e-12, atol=0
        )


def test_importance_edges_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise 0 gives the first step, noise just below 1 the last valid one, noise on a boundary the later one."""
    monkeypatch.setattr(
        drawn_steps, "uniforms", Noise(torch.tensor([[0.0, 0.125, 1 - 2**-53]] * 3, dtype=torch.float64))
    )
    data = trajectory([[0.0, 1.0, 1.0, 2.0], [1.0] * 10, [0.7]], spare=4)
    selector = EntropyImportance(3, floor=0.5)
    assert selector.probabilities(data).cumsum(-1)[1, -1] < 1, "the sum over row 1 is rounded down"
    assert selector(seeded(data))[STEP].tolist() == [[0, 1, 3], [0, 1, 9], [0, 0, 0]]


def test_importance_without_entropy_is_uniform() -> None:
    q = EntropyImportance(2).probabilities(trajectory([[0.0, 0.0, 0.0, 0.0]], spare=1))
    assert q.tolist() == [[0.25, 0.25, 0.25, 0.25, 0.0]]


@fast
@given(batches, budgets)
def test_importance_always_draws_k(data: TensorDict, k: int) -> None:
    result = run(EntropyImportance(k), data)
    assert result[STEP].shape == (len(data), k)
    assert (result[WEIGHT] > 0).all()
