"""What the tests of losses share: random batches, gradients, and the clipped surrogate by cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.losses.base import Objective

STEP, TOKEN = ("selected", "log_prob"), ("selected", "token_log_prob")
WEIGHT, ADVANTAGE, MASK = ("selected", "weight"), ("selected", "advantage"), ("selected", "token_mask")
OLD_STEP, OLD_TOKEN = ("selected", "old_log_prob"), ("selected", "old_token_log_prob")
REF_STEP, LENGTH = ("selected", "ref_log_prob"), ("sequence", "length")


def make_batch(seed: int, b: int = 5, k: int = 4, c: int = 3, dtype: torch.dtype = torch.float64) -> TensorDict:
    """A batch in which about a fifth of the entries are padding, steps have 1 .. c tokens, ratios spread widely.

    Groups are of two samples (the last one of one, if b is odd); the rewards of a group may be equal.
    """
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=gen, dtype=dtype)

    mask = torch.arange(c) < torch.randint(1, c + 1, (b, k, 1), generator=gen)
    old_token, token_shift = -normal(b, k, c).abs(), normal(b, k, c, scale=0.5)
    used = torch.rand(b, k, generator=gen) > 0.2
    weight = torch.where(used, 0.5 + torch.rand(b, k, generator=gen, dtype=dtype), 0.0)
    selected = {
        "weight": weight,
        "advantage": normal(b, k),
        "token_mask": mask,
        "old_token_log_prob": old_token * mask,
        "token_log_prob": (old_token + token_shift) * mask,
        "old_log_prob": (old_token * mask).sum(-1),
        "log_prob": ((old_token + token_shift) * mask).sum(-1),
        "ref_log_prob": (old_token * mask).sum(-1) + normal(b, k, scale=0.5),
    }
    whole = {
        "advantage": normal(b),
        "reward": torch.randint(0, 3, (b,), generator=gen).to(dtype) / 2,
        "group": 7 - torch.arange(b) // 2,
        "sequence": TensorDict({"length": torch.randint(1, 9, (b,), generator=gen)}, [b]),
    }
    return TensorDict({"selected": TensorDict(selected, [b]), **whole}, [b])


def run(loss: Objective, batch: TensorDictBase, key: tuple[str, str]) -> tuple[TensorDict, Tensor]:
    """The loss's output, and the gradient of the loss at ``key``."""
    batch = batch.clone()
    leaf = batch[key].clone().requires_grad_()
    batch[key] = leaf
    out = loss(batch)
    with torch.autograd.set_detect_anomaly(True):  # no NaN inside the backward pass either
        (grad,) = torch.autograd.grad(out["loss_objective"], leaf)
    return out, grad


def entries(batch: TensorDictBase) -> list[tuple[int, int]]:
    """Sample and place of each entry of non-zero weight."""
    b, k = batch[WEIGHT].shape
    return [(i, j) for i in range(b) for j in range(k) if batch[WEIGHT][i, j].item() != 0]


def surrogate(new: float, old: float, advantage: float, low: float, high: float) -> tuple[float, bool]:
    """PPO's surrogate by cases, and whether the clip binds."""
    ratio = math.exp(new - old)
    if advantage >= 0 and ratio > 1 + high:
        return (1 + high) * advantage, advantage > 0
    if advantage < 0 and ratio < 1 - low:
        return (1 - low) * advantage, True
    return ratio * advantage, False


def expected_diagnostics(pairs: list[tuple[float, float]], clipped: list[bool]) -> dict[str, float]:
    """``ratio``, ``ratio_max``, ``clip_fraction`` and ``approx_kl`` from (new, old) log-probabilities."""
    ratios = [math.exp(new - old) for new, old in pairs]
    n = len(pairs)
    return {
        "ratio": sum(ratios) / n,
        "ratio_max": max(ratios),
        "clip_fraction": sum(clipped) / n,
        "approx_kl": sum(r - 1 - math.log(r) for r in ratios) / n,
    }


def check_scalars(out: Any, expected: dict[str, float]) -> None:
    """The output has these names, in this order or another, each a scalar of this value."""
    assert set(out.keys()) == set(expected)
    for name, value in expected.items():
        assert out[name].shape == ()
        assert out[name].item() == pytest.approx(value, rel=1e-10, abs=1e-12), name


def totals(batch: TensorDictBase, key: tuple[str, str]) -> dict[int, Tensor]:
    """Weighted sum over the used entries of each sample that has one."""
    found: dict[int, Tensor] = {}
    for i, j in entries(batch):
        found[i] = found.get(i, torch.zeros((), dtype=torch.float64)) + batch[WEIGHT][i, j] * batch[key][i, j]
    return found


def with_equal_advantages(batch: TensorDict) -> TensorDict:
    """The advantage of a sample at each of its entries."""
    batch[ADVANTAGE] = batch["advantage"][:, None].expand_as(batch[WEIGHT]).clone()
    return batch
