"""Losses that compare the samples of a group: against loops in plain floats, padding, whole groups, parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.loss_batches import (
    LENGTH,
    OLD_STEP,
    REF_STEP,
    STEP,
    WEIGHT,
    check_scalars,
    entries,
    make_batch,
    run,
    totals,
)
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.losses.base import Objective
from dlmrl_kit.losses.relative_score import GuidedSelfDistillation, RelativeScore
from dlmrl_kit.losses.reward_tilted import RewardTilted, largest_tilt
from dlmrl_kit.losses.self_normalised_clip import SelfNormalisedClip

LOSSES: list[Callable[[], Objective]] = [
    lambda: SelfNormalisedClip(0.3, 0.2),
    lambda: RewardTilted(alpha=0.5),
    lambda: RewardTilted(alpha=0.05, least_ess=0.7),
    lambda: RelativeScore(0.4),
]
all_losses = pytest.mark.parametrize("make", LOSSES)


def batch_of_groups(seed: int, b: int = 8) -> TensorDict:
    """Groups of three and of two, one sample that selected nothing, and equal and different rewards."""
    batch = make_batch(seed, b=b)
    batch["group"] = torch.tensor([4, 1, 4, 1, 4, 9, 9, 1])[:b]
    batch[WEIGHT][1] = 0
    return batch


def groups(batch: TensorDictBase) -> list[list[int]]:
    """The samples of each group that have a used entry."""
    used = sorted({i for i, _ in entries(batch)})
    return [[i for i in used if batch["group"][i] == group] for group in batch["group"].unique().tolist()]


def spread(batch: TensorDictBase, slopes: dict[int, float]) -> Tensor:
    """The gradient at the entries, from that at the weighted sum of each sample."""
    found = torch.zeros_like(batch[STEP])
    for i, j in entries(batch):
        found[i, j] = slopes[i] * batch[WEIGHT][i, j]
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------- against loops


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (1.0, 4.0), (0.0, 0.0)])
def test_self_normalised_clip_equals_a_loop(seed: int, low: float, high: float) -> None:
    batch = batch_of_groups(seed)
    out, grad = run(SelfNormalisedClip(low, high), batch, STEP)
    new, old = totals(batch, STEP), totals(batch, OLD_STEP)
    length = {i: batch[LENGTH][i].item() for i in new}
    shift = {i: ((new[i] - old[i]) / length[i]).item() for i in new}
    ratio = {i: math.exp(shift[i]) for i in new}
    clipped = {i: min(max(ratio[i], 1 - low), 1 + high) for i in new}
    total, slopes = 0.0, {}
    for members in groups(batch):
        whole = sum(clipped[i] for i in members)
        for i in members:
            share = len(members) * clipped[i] / whole * batch["advantage"][i].item() / length[i]
            total -= share * new[i].item()
            slopes[i] = -share / len(batch)
    expected = {
        "loss_objective": total / len(batch),
        "ratio": mean(list(ratio.values())),
        "ratio_max": max(ratio.values()),
        "clip_fraction": mean([float(ratio[i] != clipped[i]) for i in ratio]),
        "approx_kl": mean([math.exp(s) - 1 - s for s in shift.values()]),
    }
    check_scalars(out, expected)
    torch.testing.assert_close(grad, spread(batch, slopes), rtol=1e-10, atol=1e-13)


def softmax(values: list[float]) -> list[float]:
    mass = [math.exp(v - max(values)) for v in values]
    return [m / sum(mass) for m in mass]


def share_of(weights: list[float]) -> float:
    return 1 / sum(w * w for w in weights) / len(weights)


def scanned(values: list[float], least: float) -> float:
    """The largest of 20,000 factors at which the effective share is as asked."""
    factors = [n / 20_000 for n in range(20_001)]
    return max(c for c in factors if share_of(softmax([c * v for v in values])) >= least)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("alpha", "least"), [(0.5, 0.0), (0.04, 0.0), (0.04, 0.7)])
def test_reward_tilted_equals_a_loop(seed: int, alpha: float, least: float) -> None:
    batch = batch_of_groups(seed)
    out, grad = run(RewardTilted(alpha, least), batch, STEP)
    new, old, reference = (totals(batch, key) for key in (STEP, OLD_STEP, REF_STEP))
    total, slopes, ess, tilt = 0.0, {}, [], []
    for members in groups(batch):
        drift = [(reference[i] - old[i]).item() for i in members]
        reward = [batch["reward"][i].item() / alpha for i in members]
        up = [d + r for d, r in zip(drift, reward, strict=True)]
        c = scanned(up, least) if least else 1.0
        weights = softmax([c * v for v in up])
        down = softmax([c * (d - r) for d, r in zip(drift, reward, strict=True)])
        for i, plus, minus in zip(members, weights, down, strict=True):
            slopes[i] = -len(members) * (plus - minus) / len(batch)
            total += slopes[i] * new[i].item()
            ess.append(share_of(weights))
            tilt.append(c)
    close = {"rel": 1e-10} if not least else {"rel": 2e-3, "abs": 2e-3}  # the scan is coarse
    assert out["loss_objective"].item() == pytest.approx(total, **close)
    assert out["log_prob"].item() == pytest.approx(mean([value.item() for value in new.values()]))
    assert out["ess"].item() == pytest.approx(mean(ess), **close)
    assert out["tilt"].item() == pytest.approx(mean(tilt), **close)
    torch.testing.assert_close(grad, spread(batch, slopes), rtol=close["rel"], atol=2e-3 if least else 1e-13)
    if least:
        assert min(tilt) < 0.9, "the rewards are so far apart that c must be adapted somewhere"


def test_equal_rewards_teach_nothing_and_the_reference_counts() -> None:
    batch = batch_of_groups(0)
    batch["reward"][:] = 0.5
    assert (run(RewardTilted(), batch, STEP)[1] == 0).all()
    batch["reward"] = torch.linspace(0, 1, 8, dtype=torch.float64)
    batch[REF_STEP] = batch[OLD_STEP].clone()
    before = run(RewardTilted(0.5), batch, STEP)[1]
    batch[REF_STEP][0, 0] += 2
    assert not torch.allclose(before, run(RewardTilted(0.5), batch, STEP)[1])


def test_the_tilt_of_equal_values_and_of_unequal_ones() -> None:
    group, used = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([True, True, True, True, True])
    values = torch.tensor([3.0, 3.0, 3.0, 0.0, 50.0], dtype=torch.float64)
    found = largest_tilt(values, group, used, 0.8)
    assert found[:3].tolist() == [1.0] * 3
    c = found[3].item()
    assert found[4].item() == c
    assert share_of(softmax([0.0, 50 * c])) == pytest.approx(0.8, abs=1e-9)
    assert 0 < c < 0.1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_relative_score_equals_a_loop(seed: int, beta: float) -> None:
    batch = batch_of_groups(seed)
    out, grad = run(RelativeScore(beta), batch, STEP)
    new, reference = totals(batch, STEP), totals(batch, REF_STEP)
    difference = {i: (new[i] - reference[i]).item() for i in new}
    total, slopes, errors = 0.0, {}, []
    for members in groups(batch):
        middle = mean([difference[i] for i in members])
        error = {i: batch["advantage"][i].item() / beta - (difference[i] - middle) for i in members}
        for i in members:
            total += beta / 2 * error[i] ** 2
            slopes[i] = -beta * (error[i] - mean(list(error.values()))) / len(batch)
            errors.append(abs(error[i]))
    expected = {
        "loss_objective": total / len(batch),
        "log_ratio": mean(list(difference.values())),
        "error": mean(errors),
    }
    check_scalars(out, expected)
    torch.testing.assert_close(grad, spread(batch, slopes), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("psi", "clip"), [(1.0, 0.0004), (3.0, 0.5)])
def test_guided_self_distillation_equals_a_loop(seed: int, psi: float, clip: float) -> None:
    batch = batch_of_groups(seed)
    out, grad = run(GuidedSelfDistillation(psi, clip), batch, STEP)
    total, ratios, outside = 0.0, [], []
    expected = torch.zeros_like(grad)
    for i, j in entries(batch):
        weight, length = batch[WEIGHT][i, j].item(), batch[LENGTH][i].item()
        ratio = (batch[STEP][i, j] - batch[OLD_STEP][i, j]).item()
        inside = math.log(1 - clip) <= ratio <= math.log(1 + clip)
        bounded = min(max(ratio, math.log(1 - clip)), math.log(1 + clip))
        error = psi * batch["selected", "advantage"][i, j].item() - bounded / length
        total += weight * error**2 / len(batch)
        expected[i, j] = -2 * weight * error / length / len(batch) if inside else 0.0
        ratios.append(ratio)
        outside.append(float(not inside))
    check_scalars(out, {"loss_objective": total, "log_ratio": mean(ratios), "clip_fraction": mean(outside)})
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-13)
    assert 0 < mean(outside) <= 1


# ------------------------------------------------------------------------------------------- of all of them


@all_losses
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_padding_contributes_exactly_nothing(make: Callable[[], Objective], junk: float) -> None:
    batch = batch_of_groups(1)
    clean, clean_grad = run(make(), batch, STEP)
    poisoned = batch.clone()
    dead = poisoned[WEIGHT] == 0
    for key in (STEP, OLD_STEP, REF_STEP):
        poisoned[key][dead] = junk
    for name in ("advantage", "reward"):
        poisoned[name][dead.all(-1)] = junk
    out, grad = run(make(), poisoned, STEP)
    assert all(torch.equal(out[name], clean[name]) for name in make().out_keys)
    assert torch.equal(grad, clean_grad)
    assert grad.abs().sum() > 0


@all_losses
def test_groups_add_up_and_an_empty_batch_is_zero(make: Callable[[], Objective]) -> None:
    loss, batch = make(), batch_of_groups(2)
    whole, grad = run(loss, batch, STEP)
    parts = [(batch["group"] == group).nonzero().squeeze(-1) for group in batch["group"].unique()]
    found = [run(loss, batch[rows], STEP) for rows in parts]
    total = sum(out["loss_objective"] * len(rows) for (out, _), rows in zip(found, parts, strict=True)) / len(batch)
    torch.testing.assert_close(total, whole["loss_objective"], rtol=1e-12, atol=1e-13)
    for (_, part), rows in zip(found, parts, strict=True):
        torch.testing.assert_close(part * len(rows) / len(batch), grad[rows], rtol=1e-12, atol=1e-13)
    batch[WEIGHT][:] = 0
    out, grad = run(loss, batch, STEP)
    assert all(out[name].item() == 0 for name in loss.out_keys)
    assert (grad == 0).all()


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (RewardTilted, "alpha", 0.0),
        (RewardTilted, "alpha", math.inf),
        (RewardTilted, "least_ess", 1.0),
        (RewardTilted, "least_ess", -0.1),
        (RelativeScore, "beta", 0.0),
        (RelativeScore, "beta", math.nan),
        (GuidedSelfDistillation, "psi", 0.0),
        (GuidedSelfDistillation, "clip", 0.0),
        (GuidedSelfDistillation, "clip", 1.0),
    ],
)
def test_parameters_out_of_range(make: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{make.__name__}\.{name} must be .*got {value}"):
        make(**{name: value})
