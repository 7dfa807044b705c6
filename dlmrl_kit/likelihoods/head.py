"""The language-model head of an update: log-probabilities of given tokens without the logits of all of them at once.

Where the logits of all scored positions would take more than ``LOGITS_BYTES``, they are computed in pieces, and once
more in the backward pass: memory holds one piece's logits, whatever the vocabulary and the number of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dlmrl_kit.core.behaviour import LOG_ZERO, Behaviour, behaviour_log_probs, forbid
from dlmrl_kit.policies.base import Policy, head_logits
from dlmrl_kit.samplers.parts import LOGITS_BYTES


def token_log_probs(policy: Policy, features: Tensor, tokens: Tensor, behaviour: Behaviour | None) -> Tensor:
    """Log-probability of one token at each position, at least ``LOG_ZERO``; differentiable.

    Args:
        policy: its head makes logits of the features.
        features: [N, D].
        tokens: int64 [N].
        behaviour: the distribution, or None for softmax(logits).

    Returns:
        [N].
    """

    def pick(features: Tensor, tokens: Tensor) -> Tensor:
        logits = forbid(head_logits(policy, features), policy.forbidden_ids)
        log_probs = logits.log_softmax(-1) if behaviour is None else behaviour_log_probs(logits, behaviour)
        return log_probs.gather(-1, tokens[:, None]).squeeze(-1).clamp(min=LOG_ZERO)

    most = max(1, LOGITS_BYTES[features.device.type == "cpu"] // (4 * policy.vocab_size))
    if len(features) <= most:
        return pick(features, tokens)
    pieces = zip(features.split(most), tokens.split(most), strict=True)
    return torch.cat([recomputed(pick, *piece) for piece in pieces])


def recomputed(function: Callable[..., Any], *given: Tensor) -> Any:
    """``function(*given)``, whose intermediate results are not kept for the backward pass but computed again."""
    if not torch.is_grad_enabled():
        return function(*given)
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
