"""Advantages and the filter that look at forwards: against loops in plain floats, and what they pay for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from dlmrl_kit.advantages.few_forwards import DecoupledForwards, DiscountedForwards, PenalisedForwards
from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.filters.drop_equal_speeds import DropEqualSpeeds

STEPS = [3, 8, 5, 5, 2, 8, 4, 4]
GROUP = [4, 1, 4, 1, 4, 9, 9, 1]
REWARD = [1.0, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0, 1.0]
T, LENGTH = 8, 16


def batch(reward: list[float] = REWARD) -> TensorDict:
    """Eight completions of 16 tokens: the first step of each commits what the others do not."""
    valid = torch.arange(T) < torch.tensor(STEPS)[:, None]
    committed = torch.where(valid, 1, 7)
    committed[:, 0] = LENGTH - torch.tensor(STEPS) + 1
    step = {"valid": valid, "num_committed": committed}
    values = {"reward": torch.tensor(reward, dtype=torch.float64), "group": torch.tensor(GROUP), "step": step}
    return TensorDict(values, [len(STEPS)])


def members(i: int) -> list[int]:
    return [j for j, group in enumerate(GROUP) if group == GROUP[i]]


def centred(returns: list[float], i: int) -> float:
    own = [returns[j] for j in members(i)]
    return returns[i] - sum(own) / len(own)


def z_score(returns: list[float], i: int) -> float:
    own = [returns[j] for j in members(i)]
    mean = sum(own) / len(own)
    spread = math.sqrt(sum((r - mean) ** 2 for r in own) / len(own))
    return (returns[i] - mean) / spread if spread else 0.0


@pytest.mark.parametrize("price", [0.0, 0.25, 3.0])
def test_penalised_forwards(price: float) -> None:
    returns = [r - price * n / T for r, n in zip(REWARD, STEPS, strict=True)]
    found = PenalisedForwards(price)(batch())["advantage"]
    assert found.tolist() == pytest.approx([centred(returns, i) for i in range(8)], abs=1e-12)


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, 3.0])
def test_discounted_forwards(power: float) -> None:
    returns = [r * (1 - n / T) ** power for r, n in zip(REWARD, STEPS, strict=True)]
    found = DiscountedForwards(power)(batch())["advantage"]
    assert found.tolist() == pytest.approx([centred(returns, i) for i in range(8)], abs=1e-12)


@pytest.mark.parametrize("speed", [0.0, 1.0, 2.5])
def test_decoupled_forwards(speed: float) -> None:
    speeds = [LENGTH / n for n in STEPS]
    expected = [z_score(REWARD, i) + speed * z_score(speeds, i) for i in range(8)]
    assert DecoupledForwards(speed)(batch())["advantage"].tolist() == pytest.approx(expected, abs=1e-12)


def test_a_price_of_zero_is_the_baseline_and_baselines_can_be_chosen() -> None:
    assert torch.equal(PenalisedForwards(0.0)(batch())["advantage"], GroupMean()(batch())["advantage"])
    assert torch.equal(DiscountedForwards(0.0)(batch())["advantage"], GroupMean()(batch())["advantage"])
    other = PenalisedForwards(0.0, LeaveOneOut())(batch())["advantage"]
    assert torch.equal(other, LeaveOneOut()(batch())["advantage"])


def test_speed_pays_among_wrong_completions_by_price_alone() -> None:
    """What tells the two returns apart: without any right answer a discount teaches nothing."""
    wrong = batch([0.0] * 8)
    assert (DiscountedForwards()(wrong)["advantage"] == 0).all()
    found = PenalisedForwards()(wrong)["advantage"]
    assert found[4] > found[0] > found[2], "2, 3 and 5 forwards of one group"


def test_every_step_and_token_gets_it_on_demand() -> None:
    data = batch()
    data["selected", "weight"] = torch.tensor([[1.0, 0.0]] * 8)
    data["completion_ids"] = torch.zeros(8, 3, dtype=torch.int64)
    found = PenalisedForwards()(data, keys=[("selected", "advantage"), ("token", "advantage")])
    assert torch.equal(found["selected", "advantage"][:, 0], found["advantage"])
    assert (found["selected", "advantage"][:, 1] == 0).all()
    assert torch.equal(found["token", "advantage"], found["advantage"][:, None].expand(8, 3))


@pytest.mark.parametrize("least", [0.0, 0.01, 2.5, 100.0])
def test_the_filter_keeps_groups_of_different_speeds(least: float) -> None:
    speeds = [LENGTH / n for n in STEPS]
    ranges = [max(own) - min(own) for own in ([speeds[j] for j in members(i)] for i in range(8))]
    data = batch()
    assert DropEqualSpeeds(least).keep(data).tolist() == [r >= least for r in ranges]
    data["step", "valid"][:] = True
    data["step", "num_committed"][:] = 2
    assert not DropEqualSpeeds().keep(data).any(), "all at one speed"


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (PenalisedForwards, "price", -1.0),
        (DiscountedForwards, "power", -0.1),
        (DecoupledForwards, "speed", math.inf),
        (DropEqualSpeeds, "least", -0.1),
        (PenalisedForwards, "baseline", 3),
    ],
)
def test_parameters_out_of_range(make: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\.{name} must be .*got"):
        make(**{name: value})
