"""The one-step advantage against a loop: padding entries, baselines, lambda."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.group_advantages import Slow, baselines, eighths, slow_leave_one_out, unchanged
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.schedules.curves import Cosine, Linear

SELECTED, TOKEN = ("selected", "advantage"), ("token", "advantage")
fast = settings(max_examples=60, deadline=None)


@st.composite
def selections(draw: st.DrawFn) -> TensorDict:
    """Interleaved groups; rows of different lengths; unordered entries, with padding anywhere that holds garbage."""
    rows, steps, entries = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    length = [draw(st.integers(1, steps)) for _ in range(rows)]
    step = torch.zeros(rows, entries, dtype=torch.int64)
    weight, value = torch.zeros(rows, entries), torch.full((rows, entries), torch.nan)
    for i in range(rows):
        picked = draw(st.lists(st.integers(0, length[i] - 1), unique=True, max_size=entries))
        for k, entry in enumerate(draw(st.permutations(range(entries)))):
            if k < len(picked):
                step[i, entry], weight[i, entry], value[i, entry] = (
                    picked[k],
                    draw(st.sampled_from([0.5, 1.0])),
                    draw(eighths),
                )
            else:
                step[i, entry] = draw(st.integers(0, steps - 1))
    return TensorDict(
        {
            "reward": torch.tensor([draw(eighths) for _ in range(rows)]),
            "group": torch.tensor([draw(st.sampled_from([-1, 0, 5])) for _ in range(rows)]),
            "step": {"valid": torch.arange(steps) < torch.tensor(length)[:, None]},
            "selected": {"step": step, "weight": weight, "reward": value},
        },
        [rows],
    )


def slow_one_step_denoise(
    data: TensorDict, lam: Callable[[float], float], normalise: bool, slow: Slow
) -> list[list[float]]:
    group, reward = data["group"].tolist(), data["reward"].tolist()
    num_steps = data["step", "valid"].shape[1]
    entries = [data["selected", name].tolist() for name in ("step", "weight", "reward")]
    values = [{s: v for s, w, v in zip(*row, strict=True) if w > 0} for row in zip(*entries, strict=True)]

    def gain(j: int, t: int) -> float:
        nearest = min(values[j], key=lambda s: (abs(s - t), s), default=None)
        value = reward[j] if nearest is None else values[j][nearest]
        share = lam(t / max(num_steps - 1, 1))
        return ((1 + share) * reward[j] - share * value) / (1 + share if normalise else 1)

    result = []
    for i, (steps, weights) in enumerate(zip(entries[0], entries[1], strict=True)):
        others = [j for j in range(len(group)) if j != i and group[j] == group[i]]
        result.append(
            [
                slow(gain(i, t), [gain(j, t) for j in others]) if w > 0 else 0.0
                for t, w in zip(steps, weights, strict=True)
            ]
        )
    return result


@baselines
@fast
@given(selections(), st.sampled_from([0.0, 0.5, 2.0]), st.booleans())
def test_one_step_denoise_against_a_loop(
    make: Callable[[], GroupAdvantage], slow: Slow, data: TensorDict, lam: float, normalise: bool
) -> None:
    before, component = data.clone(), OneStepDenoise(lam, normalise, make())
    assert component(data) is data
    unchanged(before, data)
    assert set(data.keys(True, True)) == set(before.keys(True, True)) | {SELECTED}
    assert set(component.in_keys) == set(before.keys(True, True))
    assert data[SELECTED].dtype == torch.float32
    expected = torch.tensor(slow_one_step_denoise(before, lambda f: lam, normalise, slow))
    torch.testing.assert_close(data[SELECTED], expected, rtol=1e-5, atol=1e-6)


@fast
@given(selections(), st.booleans())
def test_lambda_may_depend_on_the_step(data: TensorDict, normalise: bool) -> None:
    for schedule, lam in (
        (Linear(0.25, 2.0), lambda f: 0.25 + 1.75 * f),
        (Cosine(1.0, 0.0), lambda f: (1 + math.cos(math.pi * f)) / 2),
    ):
        found = OneStepDenoise(schedule, normalise, LeaveOneOut())(data.clone())
        expected = torch.tensor(slow_one_step_denoise(data, lam, normalise, slow_leave_one_out))
        torch.testing.assert_close(found[SELECTED], expected, rtol=1e-5, atol=1e-6)


@baselines
@fast
@given(selections())
def test_lambda_zero_is_the_plain_group_advantage(
    make: Callable[[], GroupAdvantage], slow: Slow, data: TensorDict
) -> None:
    plain = make()(data.clone(), keys=[SELECTED])
    assert torch.equal(OneStepDenoise(0.0, baseline=make())(data.clone())[SELECTED], plain[SELECTED])


@fast
@given(selections(), st.integers(0, 99))
def test_entries_of_weight_zero_influence_nothing(data: TensorDict, seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    used = data["selected", "weight"] > 0
    other = data.clone()
    steps = torch.randint(data["step", "valid"].shape[1], used.shape, generator=gen)
    other["selected", "step"] = torch.where(used, data["selected", "step"], steps)
    noise = torch.randn(used.shape, generator=gen)
    other["selected", "reward"] = torch.where(used, data["selected", "reward"], noise)
    component = OneStepDenoise(0.7, baseline=LeaveOneOut())
    first, second = component(data)[SELECTED], component(other)[SELECTED]
    assert torch.equal(first, second)
    assert (first[~used] == 0).all()


def denoise_data(
    steps: list[list[int]], values: list[list[float]], rewards: list[float], num_steps: int = 6
) -> TensorDict:
    """One group, all entries used, all rows of full length."""
    return TensorDict(
        {
            "reward": torch.tensor(rewards),
            "group": torch.zeros(len(rewards), dtype=torch.int64),
            "step": {"valid": torch.ones(len(rewards), num_steps, dtype=torch.bool)},
            "selected": {
                "step": torch.tensor(steps),
                "weight": torch.ones(len(rewards), len(steps[0])),
                "reward": torch.tensor(values),
            },
        },
        [len(rewards)],
    )


def test_one_step_denoise_by_hand() -> None:
    """Returns 2 R - V (lambda 1, undivided). Row 0 chose steps 0 and 3, row 1 steps 3 and 5; R = 1 and 0."""
    data = denoise_data([[0, 3], [3, 5]], [[0.0, 0.5], [0.25, 0.75]], [1.0, 0.0])
    # step 0: 2 and -0.25 (nearest of row 1 is its step 3); step 3: 1.5 and -0.25; step 5: 1.5 (nearest 3) and -0.75
    expected = torch.tensor([[2.25 / 2, 1.75 / 2], [-1.75 / 2, -2.25 / 2]])
    torch.testing.assert_close(OneStepDenoise(1.0, normalise=False)(data)[SELECTED], expected)


def test_equally_near_steps_stand_in_with_the_earlier() -> None:
    data = denoise_data([[2, 2], [3, 1]], [[0.0, 0.0], [8.0, 4.0]], [0.0, 0.0])
    advantage = OneStepDenoise(1.0, normalise=False, baseline=LeaveOneOut())(data)[SELECTED]
    assert advantage[0].tolist() == [4.0, 4.0]


def test_the_baseline_compares_time_steps_not_ranks() -> None:
    """All members chose the same steps in another order of entries: the mean of each step's advantages is 0."""
    data = denoise_data([[1, 4], [4, 1], [1, 4]], [[0.1, 0.9], [0.8, 0.3], [0.2, 0.7]], [1.0, 0.0, 0.5])
    advantage = OneStepDenoise(0.5)(data)[SELECTED]
    by_step = torch.stack([advantage[0], advantage[1].flip(0), advantage[2]])
    torch.testing.assert_close(by_step.mean(0), torch.zeros(2))
    assert abs(advantage.mean(0)).max() > 0.01, "by entry it is not"


@fast
@given(selections(), st.floats(-1, 1, width=32), st.floats(-1, 1, width=32))
def test_the_leave_one_out_baseline_ignores_the_sample_itself(data: TensorDict, reward: float, value: float) -> None:
    lam, component = 0.5, OneStepDenoise(0.5, normalise=False, baseline=LeaveOneOut())

    def baseline(batch: TensorDict) -> Tensor:
        gain = (1 + lam) * batch["reward"][:1] - lam * batch["selected", "reward"][0]
        return (gain - component(batch)[SELECTED][0])[batch["selected", "weight"][0] > 0]

    changed = data.clone()
    changed["reward"][0] = reward
    changed["selected", "reward"][0] = value
    torch.testing.assert_close(baseline(changed), baseline(data), rtol=1e-5, atol=1e-5)


@fast
@given(selections())
def test_normalising_divides_by_one_plus_lambda(data: TensorDict) -> None:
    divided, whole = (OneStepDenoise(0.5, flag)(data.clone())[SELECTED] for flag in (True, False))
    torch.testing.assert_close(whole, 1.5 * divided)


def test_one_step_denoise_in_float64() -> None:
    data = denoise_data([[0], [1]], [[0.1], [0.2]], [1.0, 0.0]).double()
    data["group"], data["selected", "step"] = data["group"].long(), data["selected", "step"].long()
    data["step", "valid"] = data["step", "valid"].bool()
    assert OneStepDenoise()(data)[SELECTED].dtype == torch.float64
    assert data[SELECTED][0, 0].item() == pytest.approx((1 - 0.1 / 3 + 0.2 / 3) / 2, rel=1e-6)


def test_defaults() -> None:
    component = OneStepDenoise()
    assert (component.lam, component.normalise, type(component.baseline)) == (0.5, True, GroupMean)


def test_a_recipe_fills_lambda_and_baseline() -> None:
    sets = [
        *("OneStepDenoise.lam = @schedule.Linear()", "OneStepDenoise.baseline = @LeaveOneOut()"),
        *("schedule.Linear.start = 1.0", "schedule.Linear.end = 0.0"),
    ]
    component = load_recipe("egspo_sa", sets=sets).build_algorithm().advantage
    assert isinstance(component, OneStepDenoise)
    assert isinstance(component.lam, Linear)
    assert isinstance(component.baseline, LeaveOneOut)
    assert component.lam(torch.tensor([0.0, 0.25, 1.0])).tolist() == [1.0, 0.75, 0.0]
