"""The clipped loss of tokens against loops and TorchRL's GRPOLoss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.loss_batches import (
    ADVANTAGE,
    MASK,
    OLD_TOKEN,
    TOKEN,
    WEIGHT,
    check_scalars,
    entries,
    expected_diagnostics,
    make_batch,
    run,
    surrogate,
)
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives.llm import GRPOLoss

from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.means import FixedLength, PerSequence, PerStep


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.05, 0.01), (1.0, 3.0)])
def test_token_ppo_equals_a_loop(seed: int, low: float, high: float) -> None:
    batch = make_batch(seed)
    s = batch["selected"]
    total, tokens, pairs, clipped = 0.0, 0.0, [], []
    for i in entries(batch):
        for c in range(s["token_mask"].shape[-1]):
            if s["token_mask"][(*i, c)]:
                pairs.append((s["token_log_prob"][(*i, c)].item(), s["old_token_log_prob"][(*i, c)].item()))
                value, binds = surrogate(*pairs[-1], s["advantage"][i].item(), low, high)
                total += s["weight"][i].item() * value
                tokens += s["weight"][i].item()
                clipped.append(binds)
    loss = TokenPPO(low, high)
    check_scalars(loss(batch), {"loss_objective": -total / tokens, **expected_diagnostics(pairs, clipped)})
    assert loss.count(batch).item() == pytest.approx(tokens)
    assert loss.units(batch).item() == len(pairs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [PerStep, PerSequence, lambda: FixedLength(7)], ids=["step", "sequence", "length"])
def test_token_ppo_with_a_normaliser_equals_a_loop(seed: int, make: Callable[[], Normaliser]) -> None:
    """Mean over the tokens of a step, then over steps; of a sample, then over samples; a constant length."""
    batch, normaliser = make_batch(seed), make()
    s, (b, k, c) = batch["selected"], batch[MASK].shape
    (sums, sizes), weights = torch.zeros(2, b, k, dtype=torch.float64), s["weight"].tolist()
    for i, j in entries(batch):
        for t in range(c):
            if s["token_mask"][i, j, t]:
                new, old = s["token_log_prob"][i, j, t].item(), s["old_token_log_prob"][i, j, t].item()
                sums[i, j] += surrogate(new, old, s["advantage"][i, j].item(), 0.2, 0.3)[0]
                sizes[i, j] += 1
    steps = [(weights[i][j], sums[i, j].item(), sizes[i, j].item()) for i, j in entries(batch)]
    if isinstance(normaliser, PerStep):
        expected = sum(w * total / n for w, total, n in steps) / sum(w for w, _, _ in steps)
    elif isinstance(normaliser, FixedLength):
        expected = sum(w * total for w, total, _ in steps) / 7 / b
    else:
        rows = [[step for (i, _), step in zip(entries(batch), steps, strict=True) if i == row] for row in range(b)]
        means = [sum(w * x for w, x, _ in row) / sum(w * n for w, _, n in row) for row in rows if row]
        expected = sum(means) / b
    out = TokenPPO(0.2, 0.3, normaliser)(batch)
    assert out["loss_objective"].item() == pytest.approx(-expected, rel=1e-10)


class _Scored:
    """An actor as GRPOLoss wants it: its distribution scores the tokens by a table."""

    in_keys = ["scores"]

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def get_dist(self, tensordict: TensorDictBase, **_: Any) -> _Scored:
        self.scores = tensordict["scores"]
        return self

    def log_prob(self, _: Tensor) -> Tensor:
        return self.scores


def test_token_ppo_equals_the_grpo_loss_of_torchrl() -> None:
    batch = make_batch(7)
    batch[WEIGHT] = torch.ones_like(batch[WEIGHT])
    b, k, c = batch[MASK].shape
    actor = _Scored(batch[MASK].reshape(b, k * c))
    oracle = GRPOLoss(actor, clip_epsilon=(0.2, 0.4), entropy_bonus=False)
    scores = batch[TOKEN].reshape(b, k * c).requires_grad_()
    theirs = oracle(
        TensorDict(
            {
                "scores": scores,
                "tokens": {"full": torch.zeros(b, k * c, dtype=torch.int64)},
                "log_probs": {"full": batch[OLD_TOKEN].reshape(b, k * c)},
                "advantage": batch[ADVANTAGE][..., None].expand(b, k, c).reshape(b, k * c, 1),
            },
            [b],
        )
    ).loss_objective
    (their_grad,) = torch.autograd.grad(theirs.sum(), scores)
    out, grad = run(TokenPPO(0.2, 0.4), batch, TOKEN)
    torch.testing.assert_close(out["loss_objective"], theirs.squeeze(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad.reshape(b, k * c), their_grad, rtol=1e-6, atol=1e-7)
