r"""Importance sampling of whole trajectories: w = min(product over all steps of rho_t, cap).

Without a cap, w is the ratio of the trajectory's probabilities, and the expected gradient is that of exact rollouts. It
takes one exact forward for every step, and its variance grows with their number.

Importance sampling needs a sampler that can take every action of the policy. A cached one may not: samplers that pick
positions by a score and not by chance (``EntropyOrder``, ``MarginOrder``, ``ConfidenceThreshold``) pick others with a
cache, and, rarely, a token can never be the most confident draw of ``LowConfidence``. No weight corrects that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.core.validate import Unlimited, check
from dlmrl_kit.corrections.base import Correction, ratios


@register("correction", paper="Kahn and Marshall 1953")
class TrajectoryImportance(Unlimited, Correction):
    """Weighs all steps of a sample by the importance ratio of its whole trajectory, at most ``cap``.

    Args:
        cap: the largest weight, at least 1; infinity is exact and truncates none.

    Raises:
        ValueError: a value out of range.
    """

    every_step = True
    single_steps = False
    unlimited = ("cap",)

    def __init__(self, cap: float = math.inf) -> None:
        check(cap >= 1, self, "cap", cap, "at least 1")
        self.cap = cap

    def weights(self, log_ratio: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Returns min(product of rho, cap), [B, 1], and where the product was larger."""
        total = where_used(log_ratio, used).sum(-1, keepdim=True)
        rho = ratios(total, torch.ones_like(total, dtype=torch.bool)).detach()
        return rho.clamp(max=self.cap), rho > self.cap
