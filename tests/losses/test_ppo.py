"""The clipped loss of steps against a loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.loss_batches import (
    LENGTH,
    OLD_STEP,
    STEP,
    WEIGHT,
    check_scalars,
    entries,
    expected_diagnostics,
    make_batch,
    run,
    surrogate,
    totals,
    with_equal_advantages,
)

from dlmrl_kit.audit.claims import audit_component
from dlmrl_kit.losses.ppo import LengthNormalisedPPO, PerTokenSequencePPO, SequencePPO, StepPPO


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.5), (0.05, 0.01), (1.0, 3.0)])
def test_step_ppo_equals_a_loop(seed: int, low: float, high: float) -> None:
    batch = make_batch(seed)
    s = batch["selected"]
    total, pairs, clipped = 0.0, [], []
    for i in entries(batch):
        pairs.append((s["log_prob"][i].item(), s["old_log_prob"][i].item()))
        value, binds = surrogate(*pairs[-1], s["advantage"][i].item(), low, high)
        total += s["weight"][i].item() * value
        clipped.append(binds)
    out = StepPPO(low, high)(batch)
    check_scalars(out, {"loss_objective": -total / 5, **expected_diagnostics(pairs, clipped)})


# ------------------------------------------------------------------------------------------- against loops


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.5), (0.05, 0.01), (1.0, 3.0)])
@pytest.mark.parametrize("make", [SequencePPO, LengthNormalisedPPO, PerTokenSequencePPO])
def test_sequence_losses_equal_a_loop(make: Any, low: float, high: float, seed: int) -> None:
    batch = make_batch(seed, b=7)
    batch[WEIGHT][2] = 0  # a sample that selected nothing
    new, old, length = totals(batch, STEP), totals(batch, OLD_STEP), batch[LENGTH].tolist()
    assert len(new) == 6
    total, pairs, clipped = 0.0, [], []
    for i in new:
        inside = length[i] if make is LengthNormalisedPPO else 1
        outside = length[i] if make is PerTokenSequencePPO else 1
        pairs.append((new[i].item() / inside, old[i].item() / inside))
        value, binds = surrogate(*pairs[-1], batch["advantage"][i].item(), low, high)
        total += value / outside
        clipped.append(binds)
    loss = make(low, high)
    check_scalars(loss(batch), {"loss_objective": -total / 7, **expected_diagnostics(pairs, clipped)})
    assert (loss.count(batch).item(), loss.units(batch).item()) == (7, 6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [SequencePPO, LengthNormalisedPPO, PerTokenSequencePPO])
def test_gradients_of_sequence_losses_equal_a_loop(make: Any, seed: int) -> None:
    batch = make_batch(seed, b=7)
    _, grad = run(make(0.2, 0.3), batch, STEP)
    new, old, length = totals(batch, STEP), totals(batch, OLD_STEP), batch[LENGTH].tolist()
    expected = torch.zeros_like(grad)
    for i, j in entries(batch):
        inside = length[i] if make is LengthNormalisedPPO else 1
        outside = 1 if make is SequencePPO else length[i]  # of the ratio's exponent, or of the surrogate
        difference, advantage = (new[i] - old[i]).item() / inside, batch["advantage"][i].item()
        binds = surrogate(difference, 0.0, advantage, 0.2, 0.3)[1]
        slope = 0.0 if binds else math.exp(difference) * advantage
        expected[i, j] = -batch[WEIGHT][i, j] * slope / outside / 7
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-13)
    assert grad.abs().max() > 0


# ------------------------------------------------------------------------------------------- reductions


@pytest.mark.parametrize("make", [SequencePPO, LengthNormalisedPPO, PerTokenSequencePPO])
def test_a_single_entry_of_length_one_is_a_step(make: Any) -> None:
    batch = with_equal_advantages(make_batch(4, b=8, k=1))
    batch[LENGTH] = torch.ones_like(batch[LENGTH])
    batch[WEIGHT] = (batch[WEIGHT] != 0).double()
    (expected, expected_grad), (out, grad) = (run(loss(0.2, 0.2), batch, STEP) for loss in (StepPPO, make))
    check_scalars(out, {name: value.item() for name, value in expected.items()})
    torch.testing.assert_close(grad, expected_grad, rtol=1e-13, atol=0)


def test_sequence_ppo_is_audited_as_unbiased() -> None:
    report = audit_component(SequencePPO())
    assert report.exact
    assert report.relative_bias < 1e-8
