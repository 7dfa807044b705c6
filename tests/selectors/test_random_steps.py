"""Random steps: their expectation by enumeration, exact weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.seeds import seeded
from support.selector_batches import WEIGHT, Noise, chosen, run, trajectory, weighted_sums

from dlmrl_kit.selectors import random_steps
from dlmrl_kit.selectors.random_steps import RandomSteps


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_random_steps_have_the_full_sum_as_expectation(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every order of the noise is equally likely: the mean over all orders is the expectation."""
    orders = torch.tensor(list(itertools.permutations(range(4))), dtype=torch.float64) / 10
    past_end = torch.full((len(orders), 1), 0.95, dtype=torch.float64)  # the largest noise lies past the end
    monkeypatch.setattr(random_steps, "uniforms", Noise(torch.cat([orders, past_end], dim=1)))
    data = trajectory([[1.0] * 4] * len(orders), spare=1, dtype=torch.float64)
    result = RandomSteps(k)(seeded(data))
    values = torch.tensor([3.0, -1.0, 0.5, 7.0, 1e9], dtype=torch.float64)
    torch.testing.assert_close(weighted_sums(result, values).mean(), values[:4].sum(), rtol=1e-14, atol=0)
    sets = [tuple(steps) for steps in chosen(result)]
    counts = {subset: sets.count(subset) for subset in itertools.combinations(range(4), min(k, 4))}
    assert set(counts.values()) == {len(orders) // len(counts)}, "every subset is equally likely"


def test_random_steps_weights_are_exact_in_float64() -> None:
    result = run(RandomSteps(3), trajectory([[1.0] * 7], dtype=torch.float64))
    assert result[WEIGHT].tolist() == [[7 / 3] * 3]
