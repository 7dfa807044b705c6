"""The entropy bonus against a loop."""

from __future__ import annotations

import pytest
import torch
from support.regulariser_batches import ENTROPY, WEIGHT, make_batch, run, weighted_mean

from dlmrl_kit.regularisers.entropy_bonus import EntropyBonus


@pytest.mark.parametrize("seed", range(3))
def test_entropy_bonus_equals_a_loop(seed: int) -> None:
    batch = make_batch(seed)
    h = batch[ENTROPY].tolist()
    expected = weighted_mean(batch, lambda i, j: h[i][j])
    out, grad = run(EntropyBonus(coefficient=0.7), batch, ENTROPY)
    assert list(out.keys()) == ["loss_entropy", "entropy_bonus"]
    assert out["entropy_bonus"].item() == pytest.approx(expected, rel=1e-10)
    assert out["loss_entropy"].item() == pytest.approx(-0.7 * expected, rel=1e-10)
    torch.testing.assert_close(grad, -0.7 * batch[WEIGHT] / 5, rtol=1e-12, atol=0)
