r"""Importance sampling of whole trajectories: w = min(product over all steps of rho_t, cap).

Without a cap the expected gradient is that of exact rollouts, whatever was sampled from: the ratio of the probabilities
of the trajectories. Its price is one exact forward for every step, and a variance that grows with their number. The
sampler must be able to take every action of the policy, which a cache may rule out: for samplers that pick positions by
a score, without chance (``EntropyOrder``, ``MarginOrder``, ``ConfidenceThreshold``), and in rare cases for
``LowConfidence`` (a token that can never be the most confident draw). No weight corrects that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.corrections.base import Correction, ratios


@register("correction", paper="Kahn and Marshall 1953")
class TrajectoryImportance(Correction):
    """Weighs all steps of a sample by the importance ratio of its trajectory, at most ``cap``.

    Args:
        cap: the largest weight, at least 1; infinite: exact, nothing is truncated.

    Raises:
        ValueError: a value out of range.
    """

    every_step = True
    single_steps = False

    def __init__(self, cap: float = math.inf) -> None:
        check(cap >= 1, self, "cap", cap, "at least 1")
        self.cap = cap

    def weights(self, log_ratio: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """min(product of rho, cap), [B, 1], and where the product was larger."""
        total = where_used(log_ratio, used).sum(-1, keepdim=True)
        rho = ratios(total, torch.ones_like(total, dtype=torch.bool)).detach()
        return rho.clamp(max=self.cap), rho > self.cap
