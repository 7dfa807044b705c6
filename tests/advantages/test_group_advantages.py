"""Group advantages against loops: ragged groups in interleaved rows, and by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.group_advantages import (
    Slow,
    estimators,
    samples,
    slow_column,
    slow_softmax,
    slow_z_score_without_eps,
    unchanged,
)
from tensordict import TensorDict

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.group_softmax import GroupSoftmax
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.core.trajectory import group_max

SELECTED, TOKEN = ("selected", "advantage"), ("token", "advantage")
fast = settings(max_examples=60, deadline=None)


@estimators
@fast
@given(samples)
def test_group_advantages_against_loops(
    make: Callable[[], GroupAdvantage], slow: Slow, rows: list[tuple[float, int]]
) -> None:
    rewards, group = [r for r, _ in rows], [g for _, g in rows]
    data = TensorDict({"reward": torch.tensor(rewards), "group": torch.tensor(group)}, [len(rows)])
    before, component = data.clone(), make()
    assert component(data) is data
    unchanged(before, data)
    assert set(data.keys(True, True)) == {"reward", "group", "advantage"}
    assert (list(component.in_keys), list(component.out_keys)) == (["reward", "group"], ["advantage"])
    assert data["advantage"].dtype == torch.float32
    expected = slow_column(slow, rewards, group)
    torch.testing.assert_close(data["advantage"], torch.tensor(expected), rtol=1e-6, atol=1e-6)


@estimators
@fast
@given(samples, st.integers(1, 4))
def test_estimate_works_by_column(
    make: Callable[[], GroupAdvantage], slow: Slow, rows: list[tuple[float, int]], columns: int
) -> None:
    group = [g for _, g in rows]
    returns = torch.tensor([[r * (c + 1) - c * i for c in range(columns)] for i, (r, _) in enumerate(rows)]).double()
    found = make().estimate(returns, torch.tensor(group))
    expected = [slow_column(slow, returns[:, c].tolist(), group) for c in range(columns)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).T, rtol=1e-11, atol=1e-11)


def test_group_advantages_by_hand() -> None:
    returns, group = torch.tensor([1.0, 5.0, 0.0, 0.0, 3.0]), torch.tensor([4, 9, 4, 4, 9])
    torch.testing.assert_close(GroupMean().estimate(returns, group), torch.tensor([2 / 3, 1, -1 / 3, -1 / 3, -1]))
    torch.testing.assert_close(LeaveOneOut().estimate(returns, group), torch.tensor([1, 2, -0.5, -0.5, -2]))
    std = 2**0.5 / 3
    expected = torch.tensor([2 / 3 / (std + 0.5), 1 / 1.5, -1 / 3 / (std + 0.5), -1 / 3 / (std + 0.5), -1 / 1.5])
    torch.testing.assert_close(GroupZScore(eps=0.5).estimate(returns, group), expected)


def test_a_group_of_one() -> None:
    returns, group = torch.tensor([0.75, 1.0, 0.0]), torch.tensor([5, 6, 6])
    assert GroupMean().estimate(returns, group)[0] == 0
    assert GroupZScore().estimate(returns, group)[0] == 0
    assert LeaveOneOut().estimate(returns, group)[0] == 0.75


@estimators
def test_equal_rewards_give_exactly_zero(make: Callable[[], GroupAdvantage], slow: Slow) -> None:
    for size, reward in itertools.product(range(2, 20), (0.1, 0.7, 1 / 3)):
        for dtype in (torch.float32, torch.float64):
            returns, group = torch.full((size,), reward, dtype=dtype), torch.zeros(size, dtype=torch.int64)
            advantage = make().estimate(returns, group)
            if dtype == torch.float32 or slow in (slow_z_score_without_eps, slow_softmax):
                assert advantage.tolist() == [0.0] * size
            assert advantage.abs().max() < 1e-10


def test_softmax_weights_by_hand() -> None:
    returns, group = torch.tensor([1.0, 5.0, 0.0, 3.0]).double(), torch.tensor([4, 9, 4, 9])
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-4))
    expected = [2 * (2 * p - 1), 2 * (2 * q - 1), -2 * (2 * p - 1), -2 * (2 * q - 1)]
    found = GroupSoftmax(temperature=0.5).estimate(returns, group)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_softmax_weights_are_bounded_sum_to_zero_and_start_as_twice_the_mean_centred_return() -> None:
    gen = torch.Generator().manual_seed(0)
    returns, group = torch.rand(12, generator=gen).double(), torch.arange(12) % 2
    for scale in (1e-4, 1.0, 1e4):
        found = GroupSoftmax().estimate(scale * returns, group)
        assert found.isfinite().all()
        assert found.abs().max() <= 6
        for g in (0, 1):
            assert found[group == g].sum().item() == pytest.approx(0, abs=1e-12)
    small = GroupSoftmax(temperature=3.0).estimate(1e-5 * returns, group)
    torch.testing.assert_close(small, 2 / 3 * GroupMean().estimate(1e-5 * returns, group), rtol=1e-4, atol=1e-12)


@fast
@given(samples)
def test_group_max(rows: list[tuple[float, int]]) -> None:
    values, group = [r for r, _ in rows], [g for _, g in rows]
    expected = [max(r for r, g in rows if g == own) for own in group]
    columns = torch.tensor(values)[:, None] * torch.tensor([1.0, -1.0])
    found = group_max(columns, torch.tensor(group))
    assert found[:, 0].tolist() == expected
    assert found[:, 1].tolist() == [-min(r for r, g in rows if g == own) for own in group]


@fast
@given(samples)
def test_leave_one_out_is_the_scaled_group_mean(rows: list[tuple[float, int]]) -> None:
    """In groups of G > 1, R - mean of others = G / (G - 1) * (R - mean); also of z-scores, whose mean is 0."""
    rewards, group = torch.tensor([r for r, _ in rows]).double(), torch.tensor([g for _, g in rows])
    size = (group[:, None] == group).sum(-1)
    factor = torch.where(size > 1, size / (size - 1).clamp(min=1), 0).double()
    many = size > 1
    left = LeaveOneOut().estimate(rewards, group)
    torch.testing.assert_close(left[many], (factor * GroupMean().estimate(rewards, group))[many])
    z = GroupZScore().estimate(rewards, group)
    torch.testing.assert_close(LeaveOneOut().estimate(z, group)[many], (factor * z)[many])


@estimators
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_demand_shapes(make: Callable[[], GroupAdvantage], slow: Slow, dtype: torch.dtype) -> None:
    component = make()
    weight = torch.tensor([[1.0, 2.0], [1.0, 0.0], [1.0, 1.0]], dtype=dtype)
    data = TensorDict(
        {
            "reward": torch.tensor([1.0, 0.0, 0.5], dtype=dtype),
            "group": torch.tensor([1, 1, 1]),
            "completion_ids": torch.zeros(3, 4, dtype=torch.int64),
            "selected": {"weight": weight},
        },
        [3],
    )
    before = data.clone()
    assert component.reads([SELECTED]) == ("reward", "group", ("selected", "weight"))
    assert component.reads([SELECTED, TOKEN]) == ("reward", "group", ("selected", "weight"), "completion_ids")
    assert component.writes([SELECTED, TOKEN]) == ("advantage", SELECTED, TOKEN)
    component(data, keys=[SELECTED, TOKEN])
    unchanged(before, data)
    advantage = data["advantage"]
    assert advantage.count_nonzero() >= 2
    assert torch.equal(data[TOKEN], torch.stack([advantage] * 4, dim=1))
    expected = [[a if w > 0 else 0.0 for w in ws] for a, ws in zip(advantage.tolist(), weight.tolist(), strict=True)]
    assert data[SELECTED].tolist() == expected
    assert {data[key].dtype for key in ("advantage", SELECTED, TOKEN)} == {dtype}
    assert component.reads() == ("reward", "group")
    plain = component(before.clone())
    assert SELECTED not in plain.keys(True, True), "one call does not ask another"
    assert component.writes(["reward"]) == ("advantage",), "nothing that it does not declare"
