"""The negative log-likelihood of successes: against a loop, whose tokens it reaches, its denominator."""

from __future__ import annotations

import math

import pytest
import torch
from support.loss_batches import MASK, TOKEN, WEIGHT, entries, make_batch

from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.means import PerSequence
from dlmrl_kit.regularisers.success_nll import SuccessNLL


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("success", [0.0, 0.5, 1.0, 2.0])
def test_it_equals_a_loop(seed: int, success: float) -> None:
    batch = make_batch(seed)
    leaf = batch[TOKEN].clone().requires_grad_()
    batch[TOKEN] = leaf
    out = SuccessNLL(0.3, success)(batch)
    (grad,) = torch.autograd.grad(out["loss_nll"], leaf)
    total, count, expected = 0.0, 0.0, torch.zeros_like(grad)
    for i, j in entries(batch):
        for c in batch[MASK][i, j].nonzero().squeeze(-1).tolist():
            weight = batch[WEIGHT][i, j].item()
            count += weight
            if batch["reward"][i] >= success:
                total -= weight * batch[TOKEN][i, j, c].item()
                expected[i, j, c] = -0.3 * weight
    assert out["success_nll"].item() == pytest.approx(total / count, abs=1e-12)
    assert out["loss_nll"].item() == pytest.approx(0.3 * total / count, abs=1e-12)
    torch.testing.assert_close(grad, expected / count, rtol=1e-12, atol=1e-14)
    assert (success > 1) == (not grad.any())


def test_it_shares_the_denominator_of_the_loss_unless_it_has_its_own() -> None:
    batch, loss = make_batch(1), TokenPPO(normaliser=PerSequence())
    assert float(SuccessNLL().beside(loss).count(batch)) == float(loss.count(batch))
    assert float(SuccessNLL(normaliser=PerSequence()).beside(TokenPPO()).count(batch)) == len(batch)


def test_a_success_must_be_a_number() -> None:
    with pytest.raises(ValueError, match=r"SuccessNLL\.success must be finite, got nan"):
        SuccessNLL(success=math.nan)
