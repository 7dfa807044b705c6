"""The language-model head of an update: log-probabilities of given tokens without the logits of all of them at once.

Where the logits of all scored positions would take more than ``LOGITS_BYTES``, they are computed in pieces, and once
more in the backward pass: memory holds one piece's logits, whatever the vocabulary and the number of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dlmrl_kit.core.behaviour import LOG_ZERO, Behaviour, behaviour_log_probs, forbid
from dlmrl_kit.core.policy import Policy, most_predictions
from dlmrl_kit.samplers.base import Process


def token_log_probs(
    policy: Policy,
    features: Tensor,
    tokens: Tensor,
    behaviour: Behaviour | None,
    process: Process | None = None,
) -> Tensor:
    """Log-probability of one token at each position, at least ``LOG_ZERO``; differentiable.

    Args:
        policy: its head makes logits of the features.
        features: [N, D].
        tokens: int64 [N].
        behaviour: the distribution, or None for softmax(logits).
        process: what is done to the logits before, as ``Sampler.processing`` gives; None: nothing.

    Returns:
        [N].
    """

    def pick(features: Tensor, tokens: Tensor, part: slice = slice(None)) -> Tensor:
        logits = forbid(policy.head(features), policy.forbidden_ids)
        if process is not None:
            logits = process(logits, part)
        log_probs = logits.log_softmax(-1) if behaviour is None else behaviour_log_probs(logits, behaviour)
        return log_probs.gather(-1, tokens[:, None]).squeeze(-1).clamp(min=LOG_ZERO)

    most = most_predictions(policy.vocab_size, features.device)
    if len(features) <= most:
        return pick(features, tokens)
    parts = [slice(first, first + most) for first in range(0, len(features), most)]
    return torch.cat([recomputed(partial(pick, part=part), features[part], tokens[part]) for part in parts])


T = TypeVar("T")


def recomputed(function: Callable[..., T], *given: Tensor) -> T:
    """``function(*given)``, whose intermediate results are not kept for the backward pass but computed again."""
    if not torch.is_grad_enabled():
        return function(*given)
    found: T = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return found
