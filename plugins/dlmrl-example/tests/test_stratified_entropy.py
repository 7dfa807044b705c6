"""StratifiedEntropy against plain loops, its expectation in full, its variance, the ends of its random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dlmrl_kit.core.component import Sizes
from dlmrl_kit.core.keys import SELECTED_STEP as STEP
from dlmrl_kit.core.keys import SELECTED_WEIGHT as WEIGHT
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from dlmrl_example import stratified_entropy
from dlmrl_example.stratified_entropy import StratifiedEntropy


def trajectory(rows: list[list[float]], spare: int = 0, seed: int = 0) -> TensorDict:
    """A batch whose rows have these entropies, in float64; NaN past the end of a row. ``seed``: of the rows' seeds."""
    steps = max(len(row) for row in rows) + spare
    entropy = torch.full((len(rows), steps), torch.nan, dtype=torch.float64)
    for i, row in enumerate(rows):
        entropy[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    valid = torch.tensor([[t < len(row) for t in range(steps)] for row in rows])
    seeds = sample_seeds(len(rows), "cpu", seed)
    return TensorDict({"step": {"valid": valid, "entropy": entropy}, "seed": seeds}, [len(rows)])


def slow_strata(n: int, k: int) -> list[list[int]]:
    strata = min(n, k)
    return [[t for t in range(n) if t * strata // n == j] for j in range(strata)]


def slow_probability(row: list[float], k: int, floor: float) -> list[float]:
    q = [0.0] * len(row)
    for stratum in slow_strata(len(row), k):
        total = sum(row[t] for t in stratum)
        for t in stratum:
            share = row[t] / total if total > 0 else 1 / len(stratum)
            q[t] = (1 - floor) * share + floor / len(stratum)
    return q


entropies = st.integers(0, 5).map(lambda i: i / 4)
batches = st.lists(st.lists(entropies, min_size=1, max_size=9), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(batches, st.integers(0, 2), st.integers(1, 7), st.sampled_from([0.05, 0.2, 1.0]), st.integers(0, 99))
def test_against_loops(rows: list[list[float]], spare: int, k: int, floor: float, seed: int) -> None:
    data = trajectory(rows, spare, seed)
    before = data.clone()
    result = StratifiedEntropy(k, floor)(data)
    assert result is data
    assert set(data.keys(True, True)) == {*before.keys(True, True), STEP, WEIGHT}
    torch.testing.assert_close(data["step"], before["step"], rtol=0, atol=0, equal_nan=True)
    width = min(k, max(map(len, rows)) + spare)
    assert data[STEP].shape == data[WEIGHT].shape == (len(rows), width)
    assert data[STEP].dtype == torch.int64
    for row, steps, weights in zip(rows, data[STEP].tolist(), data[WEIGHT].tolist(), strict=True):
        strata, q = slow_strata(len(row), k), slow_probability(row, k, floor)
        assert [t for stratum in strata for t in stratum] == list(range(len(row)))
        assert all(step in stratum for step, stratum in zip(steps, strata, strict=False))
        assert weights[: len(strata)] == pytest.approx([1 / q[t] for t in steps[: len(strata)]])
        assert steps[len(strata) :] == weights[len(strata) :] == [0] * (width - len(strata))


def test_short_rows_keep_every_step_with_weight_one() -> None:
    data = StratifiedEntropy(k=5)(trajectory([[0.3, 0.0, 1.2]], spare=1))
    assert data[STEP].tolist() == [[0, 1, 2, 0]]
    assert data[WEIGHT].tolist() == [[1, 1, 1, 0]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(entropies, min_size=1, max_size=6), min_size=1, max_size=3), st.integers(1, 4))
def test_the_expected_weighted_sum_is_the_sum_over_all_steps(rows: list[list[float]], k: int) -> None:
    data = trajectory(rows)
    g = torch.arange(1.0, 7.0, dtype=torch.float64) ** 2 - 9
    outcomes = StratifiedEntropy(k, 0.1).outcomes(data)
    total = sum(probability for _, _, probability in outcomes)
    expected = sum(probability * (weight * g[step]).sum(-1) for step, weight, probability in outcomes)
    torch.testing.assert_close(total, torch.ones(len(rows), dtype=torch.float64))
    torch.testing.assert_close(expected, torch.stack([g[: len(row)].sum() for row in rows]))


def test_the_outcomes_are_what_is_drawn() -> None:
    draws, row = 20_000, [1.0, 0.2, 0.5, 0.0, 0.7]
    data = StratifiedEntropy(2)(trajectory([row] * draws, seed=3))
    for step, weight, probability in StratifiedEntropy(2).outcomes(trajectory([row])):
        same = (data[STEP] == step).all(-1)
        p = probability.item()
        assert abs(same.double().mean().item() - p) <= 5 * (p * (1 - p) / draws) ** 0.5
        assert p == 0 or data[WEIGHT][same][0].tolist() == pytest.approx(weight[0].tolist())


def deviation(selector: Any, row: list[float], g: torch.Tensor) -> float:
    """Standard deviation of the weighted sum over the chosen steps, over many draws."""
    data = selector(trajectory([row] * 20_000, seed=1))
    return (data[WEIGHT] * g[data[STEP]]).sum(-1).std().item()


def test_the_weighted_sum_varies_less_than_with_draws_over_the_whole() -> None:
    row = [1.0, 0.9, 0.5, 0.4, 0.4, 0.1, 0.0, 0.05, 0.3]
    g = torch.tensor([3.0, 2.0, 2.5, 1.0, 0.5, -1.0, -2.0, -2.5, -2.0], dtype=torch.float64)
    stratified, whole = deviation(StratifiedEntropy(3, 0.2), row, g), deviation(EntropyImportance(3, 0.2), row, g)
    assert stratified < 0.7 * whole


@pytest.mark.parametrize("noise", [0.0, 1 - 2**-53])
def test_extreme_noise_stays_in_its_stratum(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    full = torch.full((1, 3), noise, dtype=torch.float64)
    monkeypatch.setattr(stratified_entropy, "uniforms", lambda seed, *shape, purpose: full)
    data = StratifiedEntropy(3)(trajectory([[0.1, 0.7, 0.3] * 3 + [0.2]]))
    end = 0 if noise == 0 else -1
    assert data[STEP].tolist() == [[stratum[end] for stratum in slow_strata(10, 3)]]


def test_on_fewer_steps_it_keeps_as_large_a_share() -> None:
    before, after = Sizes(16, 16, 16, 1), Sizes(6, 6, 6, 1)
    small = StratifiedEntropy(4, 0.1).resized(before, after)
    assert (small.k, small.floor) == (2, 0.1)
    assert StratifiedEntropy(1).resized(before, after).k == 1


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 1.5}, {"floor": 0}, {"floor": 1.1}])
def test_values_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"StratifiedEntropy\.{next(iter(wrong))} must be"):
        StratifiedEntropy(**wrong)
