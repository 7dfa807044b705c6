"""Weighs steps by their importance ratios, between two bounds."""

from __future__ import annotations

import math

from dlmrl_kit import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.corrections.base import Correction, ratios
from torch import Tensor


@register("correction")
class AcmeCorrection(Correction):
    """Weighs each selected step by its own importance ratio, between 1 / ``cap`` and ``cap``.

    Args:
        cap: the largest weight, at least 1 and finite.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, cap: float = 2.0) -> None:
        check(1 <= cap < math.inf, self, "cap", cap, "at least 1 and finite")
        self.cap = cap

    def weights(self, log_ratio: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weight of each step, [B, K], and where it was cut, bool [B, K]."""
        rho = ratios(log_ratio, used).detach()
        return rho.clamp(1 / self.cap, self.cap), (rho > self.cap) | (rho < 1 / self.cap)
