r"""The clipped surrogate of PPO (arXiv 1707.06347, eq. 7) for any unit that has a log-probability: step or token.

    rho = exp(new - old),    surrogate = min(rho A, clip(rho, 1 - low, 1 + high) A)

A ratio that already moved further than the clip in the direction A asks for gets no gradient. Before the first update
ratios are 1 up to the rounding of a forward in other batches: a range of 0 would drop the gradient of every unit that
rounding moved that way, about half of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dlmrl_kit.losses.base import keep, max_over, mean_over

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 (ratios to 2e-9 .. 5e8) so that none overflows; beyond it the gradient is 0."""

DIAGNOSTICS = ("ratio", "ratio_max", "clip_fraction", "approx_kl")


class Surrogate(NamedTuple):
    """``value``: min(rho A, clip(rho) A), 0 outside the mask. ``diagnostics``: scalars, see ``clipped_surrogate``."""

    value: Tensor
    diagnostics: dict[str, Tensor]


def clipped_surrogate(
    new: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> Surrogate:
    """The surrogate of every unit in ``mask``.

    Args:
        new: log-probabilities with gradient, any shape.
        old, advantage, mask: the same shape; constants. What lies outside the mask (bool) is never used.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].

    Returns:
        The surrogate, and over the mask: ``ratio`` (mean), ``ratio_max``, ``clip_fraction`` (share of units where the
        clip binds, so that their gradient is 0) and ``approx_kl`` (mean of rho - 1 - log rho: unbiased for
        KL(old || new) under samples of old, never negative).
    """
    log_ratio = (keep(new, mask) - keep(old, mask).detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantage = keep(advantage, mask).detach()
    ratio = log_ratio.exp()
    free, clipped = ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    with torch.no_grad():
        diagnostics = {
            "ratio": mean_over(ratio, mask),
            "ratio_max": max_over(ratio, mask),
            "clip_fraction": mean_over((free > clipped).to(ratio.dtype), mask),
            "approx_kl": mean_over(log_ratio.expm1() - log_ratio, mask),
        }
    return Surrogate(torch.minimum(free, clipped), diagnostics)
