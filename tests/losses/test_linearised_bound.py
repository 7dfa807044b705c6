"""The linearised bound: against a loop, below the objective, finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loss_batches import ADVANTAGE, LENGTH, OLD_STEP, STEP, WEIGHT, check_scalars, entries, make_batch, run
from tensordict import TensorDict

from dlmrl_kit.losses.linearised_bound import LinearisedBound
from dlmrl_kit.losses.ppo import LengthNormalisedPPO

fast = settings(max_examples=40, deadline=None)

# ------------------------------------------------------------------------------------------- against loops


def bound(difference: float, advantage: float, low: float, high: float, dual: float) -> tuple[float, float, bool]:
    """BGPO's term of one draw, its derivative in the log-ratio per token, and whether a clip binds."""
    ratio = 1 + difference if advantage >= 0 else math.exp(difference)
    slope = advantage if advantage >= 0 else ratio * advantage
    if advantage >= 0 and ratio > 1 + high:
        return (1 + high) * advantage, 0.0, advantage > 0
    if advantage < 0 and ratio < 1 - low:
        return (1 - low) * advantage, 0.0, True
    if advantage < 0 and ratio > dual:
        return dual * advantage, 0.0, True
    return ratio * advantage, slope, False


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, 3.0), (0.05, 0.01, 1.1), (1.0, 3.0, 20.0)])
def test_the_linearised_bound_equals_a_loop(seed: int, low: float, high: float, dual: float) -> None:
    batch = make_batch(seed, b=6)
    batch[STEP] = batch[OLD_STEP] + 6 * (batch[STEP] - batch[OLD_STEP])  # all clips bind somewhere, d <= -1 too
    out, grad = run(LinearisedBound(low, high, dual), batch, STEP)
    total, differences, ratios, clipped = 0.0, [], [], []
    expected = torch.zeros_like(grad)
    for i, j in entries(batch):
        length, advantage = batch[LENGTH][i].item(), batch[ADVANTAGE][i, j].item()
        differences.append((batch[STEP][i, j] - batch[OLD_STEP][i, j]).item() / length)
        value, slope, binds = bound(differences[-1], advantage, low, high, dual)
        ratios.append(1 + differences[-1] if advantage >= 0 else math.exp(differences[-1]))
        total += batch[WEIGHT][i, j].item() * value
        expected[i, j] = -batch[WEIGHT][i, j] * slope / length / 6
        clipped.append(binds)
    n = len(ratios)
    expected_scalars = {
        "loss_objective": -total / 6,
        "ratio": sum(ratios) / n,
        "ratio_max": max(ratios),
        "clip_fraction": sum(clipped) / n,
        "approx_kl": sum(math.exp(d) - 1 - d for d in differences) / n,
    }
    check_scalars(out, expected_scalars)
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-13)
    assert min(differences) <= -1 or seed != 0


# ------------------------------------------------------------------------------------------- the bound


@fast
@given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=5),
    st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3),
    st.integers(1, 6),
)
def test_the_bound_is_below_the_sequence_objective(differences: list[float], advantage: float, length: int) -> None:
    """Free of clips: mean over draws of A g <= A exp(mean over draws of the log-ratio per token)."""
    draws = len(differences)
    selected = {
        "log_prob": length * torch.tensor([differences], dtype=torch.float64),
        "old_log_prob": torch.zeros(1, draws, dtype=torch.float64),
        "advantage": torch.full((1, draws), advantage, dtype=torch.float64),
        "weight": torch.full((1, draws), 1 / draws, dtype=torch.float64),
    }
    keys = {"advantage": torch.tensor([advantage], dtype=torch.float64), "sequence": {"length": torch.tensor([length])}}
    batch = TensorDict({"selected": selected, **keys}, [1])
    lower = -LinearisedBound(1.0, 1e6, 1e6)(batch)["loss_objective"].item()
    target = -LengthNormalisedPPO(1.0, 1e6)(batch)["loss_objective"].item()
    assert lower <= target + 1e-9 * max(1, abs(target))
    if len(set(differences)) == 1 and advantage < 0:
        assert lower == pytest.approx(target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_is_finite_for_any_log_ratio(dtype: torch.dtype) -> None:
    """Where 1 + d is 0 or negative as well: the published log(1 + d) is NaN there."""
    differences = [-1.0, -1.5, -50.0, -1e4, 1e4, 0.0]
    batch = make_batch(0, b=12, k=1, dtype=dtype)
    batch[WEIGHT][:], batch[OLD_STEP][:], batch[LENGTH][:] = 1.0, 0.0, 1
    batch[STEP] = torch.tensor(differences * 2, dtype=dtype)[:, None]
    batch[ADVANTAGE] = torch.tensor([1.0] * 6 + [-1.0] * 6, dtype=dtype)[:, None]
    out, grad = run(LinearisedBound(), batch, STEP)
    assert all(value.isfinite() for value in out.values())
    assert (grad[:4] == -1 / 12).all(), "a good draw that became unlikely is pulled back, however far"
    assert grad[4] == 0
    assert (grad[6:11] == 0).all(), "clipped"
    assert grad[11].item() == pytest.approx(1 / 12)


@pytest.mark.parametrize("value", [1.0, 0.5, math.inf, math.nan])
def test_dual_clip_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=rf"LinearisedBound\.dual_clip must be above 1 and finite, got {value}"):
        LinearisedBound(dual_clip=value)
