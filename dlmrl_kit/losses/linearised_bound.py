r"""Lower bound of the sequence-level PPO objective that is a sum over Monte Carlo draws (BGPO, arXiv 2510.11683).

    d_bk = (log pi_bk - log pi_old_bk) / |o_b|            the log-ratio of one draw, per token
    g_bk = 1 + d_bk  where A >= 0                          mean over draws at most exp(mean d): exp(x) >= 1 + x
    g_bk = exp(d_bk) where A < 0                           mean over draws at least exp(mean d): Jensen
    L = -(1/B) sum_b sum_k w_bk s_bk,    s = min(g A, clip(g, 1 - low, 1 + high) A), for A < 0 at least c A

A times g, averaged over draws, bounds A rho from below, with rho = exp(mean d); value and gradient are equal where the
policy is the old one. Each summand depends on a single draw: draws are back-propagated one by one, in the memory of
one.

The re-implementation in DARE writes g as exp(log(1 + d)), which is NaN for d <= -1; here g is 1 + d itself.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import MAX_LOG_RATIO
from dlmrl_kit.core.keys import (
    SELECTED_ADVANTAGE,
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import sequence_length, weighted_sum
from dlmrl_kit.losses.ppo import ClippedSegments, Surrogate, ratios


@register(
    "loss",
    paper="arXiv 2510.11683",
    unbiased=False,
    scale="1 / length",
    under="proportional to Reinforce before the first update where all completions have the same length",
)
class LinearisedBound(ClippedSegments):
    """Minimises minus a clipped lower bound of the length-normalised sequence objective, a sum over segments.

    Args:
        clip_low: g is clipped at 1 - clip_low; in [0, 1].
        clip_high: g is clipped at 1 + clip_high; at least 0.
        dual_clip: c, above 1: where the advantage is negative, a segment counts at least c times the advantage.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "old_log_prob")``, ``("selected", "advantage")``
    and ``("selected", "weight")``, all [B, K], and ``("sequence", "length")`` int64 [B]. Returns ``loss_objective``
    and, over the segments of non-zero weight, ``ratio`` (mean of g), ``ratio_max``, ``clip_fraction`` (share where a
    clip binds) and ``approx_kl`` (of the ratio per token). ``count`` is B.

    Raises:
        ValueError: a value out of range.
    """

    segmentwise = True

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 3.0) -> None:
        keys = [SELECTED_LOG_PROB, SELECTED_OLD_LOG_PROB, SELECTED_ADVANTAGE, SELECTED_WEIGHT, SEQUENCE_LENGTH]
        super().__init__(clip_low, clip_high, keys)
        check(1 < dual_clip < math.inf, self, "dual_clip", dual_clip, "above 1 and finite")
        self.dual_clip = dual_clip

    def surrogate(self, tensordict: TensorDictBase) -> Surrogate:
        """Returns the bound of each segment, [B, K], with its g as the ratio."""
        used = tensordict[SELECTED_WEIGHT] != 0
        advantage = where_used(tensordict[SELECTED_ADVANTAGE], used).detach()
        difference = (
            where_used(tensordict[SELECTED_LOG_PROB], used)
            - where_used(tensordict[SELECTED_OLD_LOG_PROB], used).detach()
        )
        difference = difference / sequence_length(tensordict)[:, None]
        bounded = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio = torch.where(advantage >= 0, 1 + difference, bounded.exp())
        free, clipped = ratio * advantage, ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantage
        least = torch.where(advantage < 0, self.dual_clip * advantage, -math.inf)
        value = torch.maximum(torch.minimum(free, clipped), least)
        return Surrogate(value, ratios(ratio, value != free, bounded, used))

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the weighted sum of the bounds of the segments."""
        surrogate = self.surrogate(tensordict)
        return -weighted_sum(surrogate.value, tensordict[SELECTED_WEIGHT]), surrogate.ratios.diagnostics
