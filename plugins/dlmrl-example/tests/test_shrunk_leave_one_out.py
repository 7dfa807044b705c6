"""ShrunkLeaveOneOut against a plain loop that never sees the sample, its gradient by enumeration, its variance."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.core.keys import SELECTED_ADVANTAGE
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from dlmrl_example.shrunk_leave_one_out import ShrunkLeaveOneOut


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def squares(values: list[float]) -> float:
    return math.fsum((v - mean(values)) ** 2 for v in values)


def slow_baseline(own: list[float], others: list[list[float]], shrinkage: float | None) -> float:
    """The baseline of a sample from the rest of its group and the other groups: all there is without the sample."""
    if not own or not others:
        return mean(own or [mean(group) for group in others]) if own or others else 0.0
    y, target = mean(own), mean([mean(group) for group in others])
    if shrinkage is None:
        groups = [own, *others]
        freedom = sum(len(group) - 1 for group in groups)
        within = sum(squares(group) for group in groups) / freedom if freedom else 0.0
        spread = squares([mean(group) for group in groups]) / (len(groups) - 1)
        between = max(0.0, spread - within * mean([1 / len(group) for group in groups]))
        a = within / len(own)
        b = between + (between + within * mean([1 / len(group) for group in others])) / len(others)
        shrinkage = a / (a + b) if a > 0 else 0.0
    return (1 - shrinkage) * y + shrinkage * target


def slow(returns: list[float], group: list[int], shrinkage: float | None) -> list[float]:
    found = []
    for i, (value, mine) in enumerate(zip(returns, group, strict=True)):
        rest = [(r, g) for j, (r, g) in enumerate(zip(returns, group, strict=True)) if j != i]
        own = [r for r, g in rest if g == mine]
        others = [[r for r, g in rest if g == other] for other in sorted({g for _, g in rest} - {mine})]
        found.append(value - slow_baseline(own, others, shrinkage))
    return found


samples = st.lists(
    st.tuples(st.integers(-4, 4).map(lambda i: i / 4), st.sampled_from([-3, 0, 7])), min_size=1, max_size=9
)


@settings(max_examples=150, deadline=None)
@given(samples, st.sampled_from([None, 0.0, 0.3, 1.0]))
def test_against_a_loop_that_never_sees_the_sample(rows: list[tuple[float, int]], shrinkage: float | None) -> None:
    returns, group = [r for r, _ in rows], [g for _, g in rows]
    found = ShrunkLeaveOneOut(shrinkage).estimate(torch.tensor(returns, dtype=torch.float64), torch.tensor(group))
    torch.testing.assert_close(found.tolist(), slow(returns, group, shrinkage), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(samples)
def test_no_shrinkage_is_leave_one_out_unless_a_group_has_one(rows: list[tuple[float, int]]) -> None:
    rows = [*rows, *rows]
    returns, group = torch.tensor([r for r, _ in rows]), torch.tensor([g for _, g in rows])
    torch.testing.assert_close(
        ShrunkLeaveOneOut(0.0).estimate(returns, group), LeaveOneOut().estimate(returns, group), rtol=0, atol=1e-6
    )


def test_equal_returns_give_exactly_zero_and_columns_do_not_mix() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    assert ShrunkLeaveOneOut().estimate(torch.full((6,), 1 / 3), group).tolist() == [0.0] * 6
    columns = torch.rand(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = ShrunkLeaveOneOut().estimate(columns, group)
    for column, found in zip(columns.T, both.T, strict=True):
        torch.testing.assert_close(found, ShrunkLeaveOneOut().estimate(column, group))


def test_the_gradient_is_unbiased() -> None:
    """Two prompts, three coin flips each with rewards of their own: all 64 outcomes, against the true gradient."""
    theta = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    heads = torch.sigmoid(theta)
    reward = torch.tensor([[0.1, 1.0], [0.7, 0.2]], dtype=torch.float64)  # [prompt, outcome]
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    (true,) = torch.autograd.grad((reward[:, 0] * (1 - heads) + reward[:, 1] * heads).sum(), theta, retain_graph=True)
    expected = torch.zeros_like(theta)
    for outcome in itertools.product([0, 1], repeat=6):
        flips = torch.tensor(outcome)
        log_prob = torch.where(flips == 1, heads[group], 1 - heads[group]).log()
        advantage = ShrunkLeaveOneOut().estimate(reward[group, flips], group)
        (gradient,) = torch.autograd.grad((advantage * log_prob).sum() / 3, theta, retain_graph=True)
        expected += log_prob.sum().exp().detach() * gradient
    torch.testing.assert_close(expected, true)


def test_the_baseline_is_closer_to_the_expected_reward() -> None:
    """Prompts of similar difficulty, few samples each: half the squared error of leave-one-out, and never more."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(16).repeat_interleave(4)

    def error(estimator: Any, spread: float) -> float:
        total = 0.0
        for _ in range(200):
            chance = 0.4 + spread * (torch.rand(16, generator=generator, dtype=torch.float64) - 0.5)
            returns = (torch.rand(64, generator=generator, dtype=torch.float64) < chance[group]).double()
            baseline = returns - estimator.estimate(returns, group)
            total += (baseline - chance[group]).square().mean().item()
        return total / 200

    assert error(ShrunkLeaveOneOut(), spread=0.2) < 0.4 * error(LeaveOneOut(), spread=0.2)
    assert error(ShrunkLeaveOneOut(), spread=0.8) < 0.9 * error(LeaveOneOut(), spread=0.8)


def test_as_a_component_and_as_the_baseline_of_another() -> None:
    reward, group = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 0, 1, 1])
    weight = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    data = TensorDict({"reward": reward, "group": group, "selected": {"weight": weight}}, [5])
    data = ShrunkLeaveOneOut()(data, keys=[SELECTED_ADVANTAGE])
    assert data["advantage"].tolist() == pytest.approx(slow(reward.tolist(), group.tolist(), None), abs=1e-6)
    assert data[SELECTED_ADVANTAGE][:, 0].tolist() == data["advantage"].tolist()
    assert data[SELECTED_ADVANTAGE][:, 1].tolist() == [0.0] * 5
    assert isinstance(OneStepDenoise(baseline=ShrunkLeaveOneOut(0.2)).baseline, ShrunkLeaveOneOut)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1])
def test_values_out_of_range(shrinkage: float) -> None:
    with pytest.raises(ValueError, match=r"ShrunkLeaveOneOut\.shrinkage must be"):
        ShrunkLeaveOneOut(shrinkage)
