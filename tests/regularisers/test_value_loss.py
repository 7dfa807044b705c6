"""The value loss against a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.value_batches import NORMALISERS, batch, loop_shares

from dlmrl_kit.core.keys import SELECTED_VALUE
from dlmrl_kit.regularisers.value_loss import ValueLoss


@pytest.mark.parametrize("normaliser", NORMALISERS, ids=lambda n: type(n).__name__)
def test_the_value_loss_against_a_loop(normaliser: Any) -> None:
    data, clip = batch(), 0.3
    live = data["selected", "value"].clone().requires_grad_()
    term = ValueLoss(0.7, clip, normaliser)
    found = term(data.clone().set(SELECTED_VALUE, live))
    (gradient,) = torch.autograd.grad(found["loss_value"], live)
    expected, slope, bound = 0.0, torch.zeros_like(live), 0
    for t, share in loop_shares(data, normaliser).items():
        value, old, target = (float(data["selected", name][t]) for name in ("value", "old_value", "return"))
        clipped = old + min(max(value - old, -clip), clip)
        free, held = (value - target) ** 2, (clipped - target) ** 2
        expected += share * 0.5 * max(free, held)
        bound += held > free
        slope[t] = 0.0 if held > free else 0.7 * share * (value - target)
    assert bound > 3
    assert found["value_error"].item() == pytest.approx(expected, abs=1e-12)
    assert found["loss_value"].item() == pytest.approx(0.7 * expected, abs=1e-12)
    assert torch.allclose(gradient, slope, atol=1e-12, rtol=0)
