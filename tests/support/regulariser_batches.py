"""Random batches for regularisers, gradients, and the estimators by their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.regularisers.base import Regulariser

LOG_PROB, REF_LOG_PROB, ENTROPY = ("selected", "log_prob"), ("selected", "ref_log_prob"), ("selected", "entropy")
WEIGHT, MASK = ("selected", "weight"), ("selected", "token_mask")
DISTRIBUTION, REF_DISTRIBUTION = ("selected", "distribution"), ("selected", "ref_distribution")
TOKEN_LOG_PROB, REF_TOKEN_LOG_PROB = ("selected", "token_log_prob"), ("selected", "ref_token_log_prob")
V = 6


def make_batch(seed: int, b: int = 5, k: int = 4, c: int = 3, dtype: torch.dtype = torch.float64) -> TensorDict:
    """A batch with padded entries, 1 .. c tokens per step, and token V - 1 filtered from both distributions."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=dtype)

    def distribution() -> Tensor:
        logits = 2 * normal(b, k, c, V)
        logits[..., -1] = -math.inf
        return logits.log_softmax(-1)

    used = torch.rand(b, k, generator=gen) > 0.2
    selected = {
        "weight": torch.where(used, 0.5 + torch.rand(b, k, generator=gen, dtype=dtype), 0.0),
        "token_mask": torch.arange(c) < torch.randint(1, c + 1, (b, k, 1), generator=gen),
        "log_prob": -normal(b, k).abs(),
        "ref_log_prob": -normal(b, k).abs(),
        "old_log_prob": -normal(b, k).abs(),
        "token_log_prob": -normal(b, k, c).abs(),
        "ref_token_log_prob": -normal(b, k, c).abs(),
        "old_token_log_prob": -normal(b, k, c).abs(),
        "entropy": normal(b, k).abs(),
        "distribution": distribution(),
        "ref_distribution": distribution(),
    }
    length = torch.randint(1, 9, (b,), generator=gen)
    return TensorDict({"selected": TensorDict(selected, [b]), "sequence": {"length": length}}, [b])


def run(term: Regulariser, batch: TensorDictBase, key: tuple[str, str]) -> tuple[TensorDict, Tensor]:
    """The regulariser's output, and the gradient of its loss at ``key``."""
    batch = batch.clone()
    leaf = batch[key].clone().requires_grad_()
    batch[key] = leaf
    out = term(batch)
    with torch.autograd.set_detect_anomaly(True):  # no NaN inside the backward pass either
        (grad,) = torch.autograd.grad(out[term.out_keys[0]], leaf)
    return out, grad


def k1(new: float, ref: float) -> float:
    return new - ref


def k2(new: float, ref: float) -> float:
    return (new - ref) ** 2 / 2


def k3(new: float, ref: float) -> float:
    return math.exp(ref - new) - (ref - new) - 1


def weighted_mean(batch: TensorDictBase, value: Callable[[int, int], float]) -> float:
    b, k = batch[WEIGHT].shape
    weight = batch[WEIGHT].tolist()
    return sum(weight[i][j] * value(i, j) for i in range(b) for j in range(k) if weight[i][j] != 0) / b


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def gradient(scalar: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(scalar, logits, retain_graph=True)[0]
