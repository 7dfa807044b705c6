"""Clipping by hand, extreme ratios, and the gradient before the first update."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.loss_batches import ADVANTAGE, MASK, OLD_STEP, OLD_TOKEN, STEP, TOKEN, WEIGHT, make_batch, run

from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.losses.token_ppo import TokenPPO

# ------------------------------------------------------------------------------------------- clipping


CLIP_CASES = [
    # ratio, advantage, loss, gradient in the log-probability, clip binds;  low 0.2, high 0.5
    (2.0, 1.0, -1.5, 0.0, 1.0),
    (2.0, -1.0, 2.0, 2.0, 0.0),
    (0.5, 1.0, -0.5, -0.5, 0.0),
    (0.5, -1.0, 0.8, 0.0, 1.0),
    (1.25, 2.0, -2.5, -2.5, 0.0),
    (1.25, -2.0, 2.5, 2.5, 0.0),
    (0.9, 2.0, -1.8, -1.8, 0.0),
    (0.9, -2.0, 1.8, 1.8, 0.0),
    (1.0, 3.0, -3.0, -3.0, 0.0),
    (1.0, -3.0, 3.0, 3.0, 0.0),
    (2.0, 0.0, 0.0, 0.0, 0.0),
    (0.5, 0.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("make", "key", "old"), [(StepPPO, STEP, OLD_STEP), (TokenPPO, TOKEN, OLD_TOKEN)])
@pytest.mark.parametrize(("ratio", "advantage", "value", "gradient", "binds"), CLIP_CASES)
def test_clip_by_hand(
    make: type, key: Any, old: Any, ratio: float, advantage: float, value: float, gradient: float, binds: float
) -> None:
    batch = make_batch(0, 1, 1, 1)
    batch[WEIGHT][:], batch[ADVANTAGE][:], batch[old][:], batch[key][:] = 1.0, advantage, -3.0, -3.0 + math.log(ratio)
    out, grad = run(make(clip_low=0.2, clip_high=0.5), batch, key)
    assert out["loss_objective"].item() == pytest.approx(value, abs=1e-12)
    assert grad.item() == pytest.approx(gradient, abs=1e-12)
    assert out["clip_fraction"].item() == binds
    assert out["ratio"].item() == pytest.approx(ratio)


@pytest.mark.parametrize(("make", "key", "old"), [(StepPPO, STEP, OLD_STEP), (TokenPPO, TOKEN, OLD_TOKEN)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_ratios_stay_finite_and_large_ones_keep_their_gradient(
    make: type, key: Any, old: Any, dtype: torch.dtype
) -> None:
    batch = make_batch(0, 6, 1, 1, dtype)
    batch[WEIGHT][:], batch[old][:] = 1.0, 0.0
    batch[key] = torch.tensor([1000.0, -1000.0, 1000.0, -1000.0, 15.0, -15.0], dtype=dtype).reshape(batch[key].shape)
    batch[ADVANTAGE] = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 1.0], dtype=dtype).reshape(6, 1)
    out, grad = run(make(), batch, key)
    assert all(value.isfinite() for value in out.values())
    assert grad.isfinite().all()
    assert grad.flatten()[4].item() == pytest.approx(math.exp(15) / 6, rel=1e-5)
    assert grad.flatten()[5].item() == pytest.approx(-math.exp(-15) / 6, rel=1e-5)


# ------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_gradients_are_the_policy_gradient(seed: int) -> None:
    batch = make_batch(seed)
    batch[OLD_TOKEN], batch[OLD_STEP] = batch[TOKEN], batch[STEP]
    _, reinforce = run(Reinforce(), batch, STEP)
    # the policy gradient itself: -w A / B at every step
    torch.testing.assert_close(reinforce, -batch[WEIGHT] * batch[ADVANTAGE] / 5, rtol=1e-14, atol=0)
    out, step = run(StepPPO(), batch, STEP)
    torch.testing.assert_close(step, reinforce, rtol=1e-14, atol=0)
    assert [out[name].item() for name in ("ratio", "ratio_max", "clip_fraction", "approx_kl")] == [1, 1, 0, 0]

    # token by token, the step's log-probability being the sum of its tokens'
    tokens = TokenPPO()
    _, token = run(tokens, batch, TOKEN)
    by_token = (reinforce[..., None] * batch[MASK]) * 5
    torch.testing.assert_close(token * tokens.count(batch), by_token, rtol=1e-13, atol=0)
    assert token.abs().max() > 0
