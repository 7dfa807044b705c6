"""Logits -> behaviour distribution: the one function that samplers and exact likelihoods share.

Order of operations: forbidden tokens, temperature, top-k, top-p. The distribution a sampler draws from and the one an
exact estimator scores with are the same tensor by construction, so the old/new ratio is 1 before the first update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_ZERO = -100.0
"""Floor for the log-probability of an action that the current policy cannot take (exp(-100) is 0 for every ratio)."""


@dataclass(frozen=True)
class Behaviour:
    """How logits become a sampling distribution.

    Args:
        temperature: divides the logits; 0 means greedy (all mass on the argmax).
        top_k: keep the k most probable tokens, and those as probable as the last of them; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches top_p; 1 keeps all.

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature!r}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps every token), got {self.top_k!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p!r}")


def forbid(logits: Tensor, forbidden_ids: Sequence[int]) -> Tensor:
    """Logits in float32 or better with the forbidden tokens at -inf: [..., V] -> [..., V]."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if not forbidden_ids:
        return logits
    return logits.index_fill(-1, torch.as_tensor(list(forbidden_ids), device=logits.device), -torch.inf)


def behaviour_log_probs(logits: Tensor, behaviour: Behaviour) -> Tensor:
    """Log-probabilities of the behaviour distribution.

    Args:
        logits: float32 or float64 [..., V], forbidden tokens at -inf (see ``forbid``).
        behaviour: temperature and filters.

    Returns:
        [..., V] of the same dtype, normalised; -inf at filtered tokens. Differentiable: the kept set is held fixed,
        which is exact almost everywhere.
    """
    if behaviour.temperature == 0:
        greedy = torch.full_like(logits, -torch.inf)
        return greedy.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    scaled = logits / behaviour.temperature if behaviour.temperature != 1 else logits
    if 0 < behaviour.top_k < logits.shape[-1]:
        smallest = scaled.detach().topk(behaviour.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
    if behaviour.top_p < 1:
        ordered, order = scaled.detach().softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= behaviour.top_p)
        scaled = scaled.masked_fill(drop, -torch.inf)
    return scaled.log_softmax(-1)


def sample(log_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token per distribution by inverting the cumulative distribution: int64 [N] from [N, V].

    The uniform noise and the cumulative sum are float64, so the tail keeps its mass (a Gumbel draw in bfloat16 loses
    it), and a token of probability 0 is never drawn.
    """
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
    noise = torch.rand(log_probs.shape[:-1], generator=generator, device=log_probs.device, dtype=torch.float64).clamp_(
        max=1 - 2**-32
    )
    return torch.searchsorted(cumulative, (noise * cumulative[..., -1]).unsqueeze(-1), right=True).squeeze(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """Shannon entropy in nats, [...] from [..., V]; filtered tokens (-inf) count 0, in value and gradient."""
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    return -(log_probs.exp() * finite).sum(-1)


def confidence(logits: Tensor) -> Tensor:
    """Confidence of every token as log-odds: log c - log(1 - c) with c = softmax(logits), [..., V] -> [..., V].

    Orders tokens and positions exactly as c does. In float32 c itself rounds to 1 for confident tokens, which would
    make the order among confident positions arbitrary; log-odds keep it. Forbidden tokens are at -inf.
    """
    shifted = logits - logits.amax(-1, keepdim=True)
    mass = shifted.exp()
    rest = mass.scatter(-1, shifted.argmax(-1, keepdim=True), 0.0).sum(-1, keepdim=True)
    others = torch.where(shifted == 0, rest, 1.0 + rest - mass)  # the same for every token as probable as the best
    return shifted - others.log()
