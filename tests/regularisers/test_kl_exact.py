"""The exact KL against a loop; filtered tokens, and large vocabularies."""

from __future__ import annotations

import math

import pytest
import torch
from support.regulariser_batches import DISTRIBUTION, MASK, REF_DISTRIBUTION, V, gradient, make_batch, weighted_mean

from dlmrl_kit.core.behaviour import LOG_ZERO
from dlmrl_kit.regularisers.kl_exact import KLExact, categorical_kl

# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("seed", range(3))
def test_exact_kl_equals_a_loop(seed: int) -> None:
    batch = make_batch(seed)
    p, q, mask = batch[DISTRIBUTION].tolist(), batch[REF_DISTRIBUTION].tolist(), batch[MASK].tolist()

    def step(i: int, j: int) -> float:
        return sum(
            math.exp(p[i][j][c][v]) * (p[i][j][c][v] - q[i][j][c][v])
            for c in range(3)
            if mask[i][j][c]
            for v in range(V - 1)
        )

    out = KLExact(coefficient=0.7)(batch)
    expected = weighted_mean(batch, step)
    assert list(out.keys()) == ["loss_kl", "kl"]
    assert out["kl"].item() == pytest.approx(expected, rel=1e-10)
    assert out["loss_kl"].item() == pytest.approx(0.7 * expected, rel=1e-10)


# ------------------------------------------------------------------------------------------- edges


def test_exact_kl_where_tokens_are_filtered() -> None:
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    log_p = torch.cat([logits.log_softmax(-1), torch.full((2,), -math.inf, dtype=torch.float64)])
    floor = math.log(0.5)
    log_q = torch.tensor([floor, floor, -math.inf, -math.inf, -1.0], dtype=torch.float64)
    # p > 0 = q at token 2: log q counts as LOG_ZERO; p = 0 at tokens 3, 4: nothing, whatever q is
    p = logits.softmax(-1)
    true = (p * (p.log() - torch.tensor([floor, floor, LOG_ZERO], dtype=torch.float64))).sum()
    got = categorical_kl(log_p, log_q)
    assert got.item() == pytest.approx(true.item(), rel=1e-12)
    grad = gradient(got, logits)
    assert grad.isfinite().all()
    torch.testing.assert_close(grad, gradient(true, logits), rtol=1e-12, atol=1e-13)


def test_exact_kl_does_not_depend_on_the_size_of_the_vocabulary() -> None:
    batch = make_batch(0)
    wider = batch.clone()
    for key in (DISTRIBUTION, REF_DISTRIBUTION):
        wider[key] = torch.nn.functional.pad(batch[key], (0, 50), value=-math.inf)
    assert KLExact()(wider)["kl"].item() == pytest.approx(KLExact()(batch)["kl"].item(), rel=1e-13)
    assert KLExact()(batch)["kl"].item() > 0.1
