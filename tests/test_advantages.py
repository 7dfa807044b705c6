"""Advantages and schedules against plain loops: ragged groups in interleaved rows, padding slots, restarts."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import gin
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.group_softmax import GroupSoftmax
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.monte_carlo import MonteCarlo
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.core.trajectory import group_max
from dlmrl_kit.schedules.base import Schedule
from dlmrl_kit.schedules.curves import Constant, Cosine, Linear

SELECTED, TOKEN = ("selected", "advantage"), ("token", "advantage")
fast = settings(max_examples=60, deadline=None)


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def slow_mean(own: float, others: list[float]) -> float:
    return own - mean([own, *others])


def slow_leave_one_out(own: float, others: list[float]) -> float:
    return own - (mean(others) if others else 0.0)


def slow_z_score(own: float, others: list[float]) -> float:
    group = [own, *others]
    std = mean([(r - mean(group)) ** 2 for r in group]) ** 0.5
    return (own - mean(group)) / (std + 1e-4)


def slow_z_score_without_eps(own: float, others: list[float]) -> float:
    """TraceRL's: population standard deviation, 0 where it is 0."""
    group = [own, *others]
    return 0.0 if len(set(group)) == 1 else (own - mean(group)) / statistics.pstdev(group)


def slow_sample_z_score(own: float, others: list[float]) -> float:
    """JustGRPO's: torch.std, which divides by G - 1, plus 1e-4."""
    group = [own, *others]
    return 0.0 if len(group) == 1 else (own - mean(group)) / (statistics.stdev(group) + 1e-4)


def slow_softmax(own: float, others: list[float]) -> float:
    """wd1's weights, of centred returns, times the size of the group."""
    group = [own, *others]
    up, down = ([math.exp(sign * (r - mean(group))) for r in group] for sign in (1, -1))
    return len(group) * (up[0] / math.fsum(up) - down[0] / math.fsum(down))


Slow = Callable[[float, list[float]], float]
ESTIMATORS: dict[str, tuple[Callable[[], GroupAdvantage], Slow]] = {
    "GroupMean": (GroupMean, slow_mean),
    "LeaveOneOut": (LeaveOneOut, slow_leave_one_out),
    "GroupZScore": (GroupZScore, slow_z_score),
    "GroupZScore(0)": (lambda: GroupZScore(0), slow_z_score_without_eps),
    "GroupZScore(correction=1)": (lambda: GroupZScore(correction=1), slow_sample_z_score),
    "GroupSoftmax": (GroupSoftmax, slow_softmax),
}
estimators = pytest.mark.parametrize(("make", "slow"), ESTIMATORS.values(), ids=list(ESTIMATORS))
baselines = pytest.mark.parametrize(("make", "slow"), [ESTIMATORS[name] for name in ("GroupMean", "LeaveOneOut")])


def slow_column(slow: Slow, returns: list[float], group: list[int]) -> list[float]:
    rows = range(len(returns))
    return [slow(returns[i], [returns[j] for j in rows if j != i and group[j] == group[i]]) for i in rows]


eighths = st.integers(-8, 8).map(lambda i: i / 8)
ids = st.sampled_from([-3, 0, 7, 10**12])
samples = st.lists(st.tuples(eighths, ids), min_size=1, max_size=9)


def unchanged(before: TensorDict, after: TensorDict) -> None:
    for key in before.keys(True, True):
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0, equal_nan=True)


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
    component.ask_for([SELECTED])
    assert list(component.in_keys) == ["reward", "group", ("selected", "weight")]
    component.ask_for([SELECTED, TOKEN])
    assert list(component.in_keys) == ["reward", "group", ("selected", "weight"), "completion_ids"]
    component(data)
    unchanged(before, data)
    advantage = data["advantage"]
    assert advantage.count_nonzero() >= 2
    assert torch.equal(data[TOKEN], torch.stack([advantage] * 4, dim=1))
    expected = [[a if w > 0 else 0.0 for w in ws] for a, ws in zip(advantage.tolist(), weight.tolist(), strict=True)]
    assert data[SELECTED].tolist() == expected
    assert {data[key].dtype for key in ("advantage", SELECTED, TOKEN)} == {dtype}
    component.ask_for([])
    assert list(component.in_keys) == ["reward", "group"]
    plain = component(before.clone())
    assert SELECTED not in plain.keys(True, True)
    assert make().asked == (), "asking one instance does not ask another"
    with pytest.raises(ValueError, match=r"cannot write \['reward'\]"):
        component.ask_for(["reward"])


# ---------------------------------------------------------------------------------------------------- OneStepDenoise


@st.composite
def selections(draw: st.DrawFn) -> TensorDict:
    """Interleaved groups; rows of different lengths; unordered slots, with padding anywhere that holds garbage."""
    rows, steps, slots = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    length = [draw(st.integers(1, steps)) for _ in range(rows)]
    step = torch.zeros(rows, slots, dtype=torch.int64)
    weight, value = torch.zeros(rows, slots), torch.full((rows, slots), torch.nan)
    for i in range(rows):
        picked = draw(st.lists(st.integers(0, length[i] - 1), unique=True, max_size=slots))
        for k, slot in enumerate(draw(st.permutations(range(slots)))):
            if k < len(picked):
                step[i, slot], weight[i, slot], value[i, slot] = (
                    picked[k],
                    draw(st.sampled_from([0.5, 1.0])),
                    draw(eighths),
                )
            else:
                step[i, slot] = draw(st.integers(0, steps - 1))
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
    slots = [data["selected", name].tolist() for name in ("step", "weight", "reward")]
    values = [{s: v for s, w, v in zip(*row, strict=True) if w > 0} for row in zip(*slots, strict=True)]

    def gain(j: int, t: int) -> float:
        nearest = min(values[j], key=lambda s: (abs(s - t), s), default=None)
        value = reward[j] if nearest is None else values[j][nearest]
        share = lam(t / max(num_steps - 1, 1))
        return ((1 + share) * reward[j] - share * value) / (1 + share if normalise else 1)

    result = []
    for i, (steps, weights) in enumerate(zip(slots[0], slots[1], strict=True)):
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
    plain = make()
    plain.ask_for([SELECTED])
    assert torch.equal(OneStepDenoise(0.0, baseline=make())(data.clone())[SELECTED], plain(data.clone())[SELECTED])


@fast
@given(selections(), st.integers(0, 99))
def test_slots_of_weight_zero_influence_nothing(data: TensorDict, seed: int) -> None:
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
    """One group, all slots used, all rows of full length."""
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
    """All members chose the same steps in another order of slots: the mean of each step's advantages is 0."""
    data = denoise_data([[1, 4], [4, 1], [1, 4]], [[0.1, 0.9], [0.8, 0.3], [0.2, 0.7]], [1.0, 0.0, 0.5])
    advantage = OneStepDenoise(0.5)(data)[SELECTED]
    by_step = torch.stack([advantage[0], advantage[1].flip(0), advantage[2]])
    torch.testing.assert_close(by_step.mean(0), torch.zeros(2))
    assert abs(advantage.mean(0)).max() > 0.01, "by slot it is not"


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
    assert (component.lam, component.normalise, type(component.baseline)) == (Constant(0.5), True, GroupMean)


def test_gin_fills_lambda_and_baseline() -> None:
    gin.parse_config(
        "OneStepDenoise.lam = @schedule.Linear()\nOneStepDenoise.baseline = @LeaveOneOut()\n"
        "schedule.Linear.start = 1.0\nschedule.Linear.end = 0.0"
    )
    try:
        component = gin.get_configurable("OneStepDenoise")()
    finally:
        gin.clear_config()
    assert isinstance(component.baseline, LeaveOneOut)
    assert component.lam(torch.tensor([0.0, 0.25, 1.0])).tolist() == [1.0, 0.75, 0.0]


# -------------------------------------------------------------------------------------------------------- MonteCarlo


class Restart:
    """A fake restart: the j-th of n rewards from x_t in row b is ``reward(b, t, j, n)``; remembers what was asked."""

    def __init__(self, reward: Callable[[int, int, int, int], float]) -> None:
        self.reward = reward
        self.calls: list[tuple[list[list[int]], int]] = []

    def __call__(self, tensordict: TensorDictBase, step: Tensor, n: int) -> Tensor:
        asked = step.tolist()
        self.calls.append((asked, n))
        rewards = [[[self.reward(b, t, j, n) for j in range(n)] for t in row] for b, row in enumerate(asked)]
        return torch.tensor(rewards, dtype=torch.float32)


def monte_carlo_data() -> TensorDict:
    """Row 0: 4 steps, chosen 0 and 3; row 1: 2 steps, chosen 1, one slot of padding."""
    step = {"valid": torch.arange(5) < torch.tensor([[4], [2]])}
    selected = {"step": torch.tensor([[0, 3], [1, 0]]), "weight": torch.tensor([[1.0, 0.5], [1.0, 0.0]])}
    return TensorDict({"step": step, "selected": selected, "reward": torch.zeros(2)}, [2])


@pytest.mark.parametrize(("n", "n_baseline"), [(1, 1), (3, 2), (2, 5)])
def test_monte_carlo(n: int, n_baseline: int) -> None:
    restart = Restart(lambda b, t, j, n: 100 * b + t**2 + j / n)
    data, component = monte_carlo_data(), MonteCarlo(n, n_baseline)
    before = data.clone()
    assert component(data, restart=restart) is data
    unchanged(before, data)
    assert restart.calls == [([[1, 4], [2, 2]], n), ([[0, 3], [1, 2]], n_baseline)]
    offset = (n - 1) / (2 * n) - (n_baseline - 1) / (2 * n_baseline)
    torch.testing.assert_close(data[SELECTED], torch.tensor([[1 + offset, 7 + offset], [3 + offset, 0.0]]))


def test_monte_carlo_without_baseline() -> None:
    restart = Restart(lambda b, t, j, n: 100 * b + t**2 + j)
    advantage = MonteCarlo(3, 0)(monte_carlo_data(), restart=restart)[SELECTED]
    assert len(restart.calls) == 1
    assert advantage.tolist() == [[2.0, 17.0], [105.0, 0.0]]


def test_monte_carlo_ignores_padding() -> None:
    restart = Restart(lambda b, t, j, n: math.nan if (b, t) == (1, 2) and len(restart.calls) == 2 else 1.0)
    advantage = MonteCarlo(2, 2)(monte_carlo_data(), restart=restart)[SELECTED]
    assert advantage.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_monte_carlo_declares_what_a_restart_needs() -> None:
    component = MonteCarlo()
    assert component.requires == ("restart",)
    needed = {"prompt_ids", "prompt_mask", "example", "completion_ids", "commit_step", "reward"}
    assert needed | {("selected", "step"), ("selected", "weight"), ("step", "valid")} == set(component.in_keys)
    assert list(component.out_keys) == [SELECTED]


# --------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.75), [0.75, 0.75, 0.75, 0.75]),
        (Linear(2.0, 1.0), [2.0, 1.75, 1.5, 1.0]),
        (Linear(0.1, 0.3), [0.1, 0.15, 0.2, 0.3]),
        (Cosine(2.0, 1.0), [2.0, 1.5 + 2**0.5 / 4, 1.5, 1.0]),
        (Cosine(0.1, 0.3), [0.1, 0.2 - 0.1 * 2**0.5 / 2, 0.2, 0.3]),
    ],
    ids=repr,
)
def test_schedules_by_hand(schedule: Schedule, expected: list[float], dtype: torch.dtype) -> None:
    fraction = torch.tensor([[0.0, 0.25], [0.5, 1.0]], dtype=dtype)
    torch.testing.assert_close(schedule(fraction), torch.tensor(expected, dtype=dtype).reshape(2, 2))
    assert fraction.flatten().tolist() == [0.0, 0.25, 0.5, 1.0]


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: GroupZScore(-0.1), r"GroupZScore\.eps must be at least 0 and finite, got -0\.1"),
    (lambda: GroupZScore(correction=2), r"GroupZScore\.correction must be 0 or 1, got 2"),
    (lambda: GroupSoftmax(0.0), r"GroupSoftmax\.temperature must be positive and finite, got 0\.0"),
    (lambda: GroupSoftmax(math.inf), r"GroupSoftmax\.temperature must be positive and finite, got inf"),
    (lambda: OneStepDenoise(-0.5), r"OneStepDenoise\.lam must be at least 0 at every step, got -0\.5"),
    (lambda: OneStepDenoise(Linear(1, -1)), r"OneStepDenoise\.lam must be at least 0 .* got Linear\(start=1, end=-1\)"),
    (lambda: OneStepDenoise("half"), r"OneStepDenoise\.lam must be a number or a schedule, got 'half'"),  # type: ignore[arg-type]
    (lambda: OneStepDenoise(baseline=3), r"OneStepDenoise\.baseline must be a group advantage, got 3"),  # type: ignore[arg-type]
    (lambda: MonteCarlo(n=0), r"MonteCarlo\.n must be an integer, at least 1, got 0"),
    (lambda: MonteCarlo(n_baseline=-1), r"MonteCarlo\.n_baseline must be an integer, at least 0, got -1"),
    (lambda: Constant(math.nan), r"Constant\.value must be finite, got nan"),
    (lambda: Linear(math.inf, 0), r"Linear\.start must be finite, got inf"),
    (lambda: Linear(0, math.nan), r"Linear\.end must be finite, got nan"),
    (lambda: Cosine(math.nan, 0), r"Cosine\.start must be finite, got nan"),
    (lambda: Cosine(0, -math.inf), r"Cosine\.end must be finite, got -inf"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message.split(" ")[0] for _, message in BAD])
def test_parameter_errors_name_component_and_parameter(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
