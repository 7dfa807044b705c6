"""Rollout filters against loops; what they read, write and refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from dlmrl_kit.filters.base import Filter
from dlmrl_kit.filters.drop_equal_rewards import DropEqualRewards
from dlmrl_kit.filters.success_range import SuccessRange

fast = settings(max_examples=60, deadline=None)
rewards = st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0, 1.5])
samples = st.lists(st.tuples(rewards, st.sampled_from([-3, 0, 7, 10**12])), min_size=1, max_size=12)
Rule = Callable[[list[float]], bool]
FILTERS: list[tuple[Callable[[], Filter], Rule]] = [
    (DropEqualRewards, lambda group: len(set(group)) > 1),
    (SuccessRange, lambda group: 0.2 <= sum(r >= 1 for r in group) / len(group) <= 0.8),
    (lambda: SuccessRange(0, 1), lambda group: True),
    (lambda: SuccessRange(0.5, 0.5, 0.1), lambda group: 2 * sum(r >= 0.1 for r in group) == len(group)),
    (lambda: SuccessRange(1, 1, -1.0), lambda group: True),
    (lambda: SuccessRange(0, 0.25, 0.99), lambda group: 4 * sum(r >= 0.99 for r in group) <= len(group)),
]


@pytest.mark.parametrize(("make", "rule"), FILTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@fast
@given(samples)
def test_filters_keep_the_groups_that_a_loop_keeps(
    make: Callable[[], Filter], rule: Rule, dtype: torch.dtype, rows: list[tuple[float, int]]
) -> None:
    size = len(rows)
    data = TensorDict(
        {
            "reward": torch.tensor([r for r, _ in rows], dtype=dtype),
            "group": torch.tensor([g for _, g in rows]),
            "row": torch.arange(size),
            "step": TensorDict({"entropy": torch.arange(2 * size).reshape(size, 2)}, [size]),
        },
        [size],
    )
    before = data.clone()
    kept = make()(data)
    groups = {g: [r for r, other in rows if other == g] for _, g in rows}
    expected = [i for i, (_, g) in enumerate(rows) if rule(groups[g])]
    assert kept["row"].tolist() == expected
    assert kept.batch_size == (len(expected),)
    assert kept["step", "entropy"].tolist() == [[2 * i, 2 * i + 1] for i in expected]
    assert (kept["reward"] == before["reward"][expected]).all()
    assert (data == before).all()


@pytest.mark.parametrize("size", range(1, 31))
def test_both_ends_of_the_range_are_included(size: int) -> None:
    """A share of exactly 1/5 or 4/5 is kept, whatever the size of the group."""
    for successes in range(size + 1):
        data = TensorDict(
            {"reward": (torch.arange(size) < successes).float(), "group": torch.zeros(size).long()}, [size]
        )
        assert (len(SuccessRange()(data)) > 0) == (size <= 5 * successes <= 4 * size)


def test_what_filters_read_and_write() -> None:
    for make, _ in FILTERS:
        component = make()
        assert (list(component.in_keys), list(component.out_keys)) == (["reward", "group"], [])


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: SuccessRange(low=-0.1), r"SuccessRange\.low must be in \[0, 1\], got -0\.1"),
    (lambda: SuccessRange(low=math.nan), r"SuccessRange\.low must be in \[0, 1\], got nan"),
    (lambda: SuccessRange(high=1.1), r"SuccessRange\.high must be in \[low, 1\] with low = 0\.2, got 1\.1"),
    (lambda: SuccessRange(0.5, 0.4), r"SuccessRange\.high must be in \[low, 1\] with low = 0\.5, got 0\.4"),
    (lambda: SuccessRange(success=math.inf), r"SuccessRange\.success must be finite, got inf"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_parameters_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
