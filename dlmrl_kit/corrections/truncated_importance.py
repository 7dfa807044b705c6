r"""Truncated importance sampling of single steps (Ionides 2008): w_t = min(rho_t, cap).

It corrects the draw in x_t itself. It does not correct that earlier steps, drawn from mu as well, led to x_t, or that
later ones led to the reward. ``dlmrl audit`` measures the bias that is left.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import Unlimited, check
from dlmrl_kit.corrections.base import Correction, ratios


@register("correction", paper="Ionides 2008")
class TruncatedImportance(Unlimited, Correction):
    """Weighs each selected step by its own importance ratio, at most ``cap``.

    Args:
        cap: the largest weight, at least 1; infinity truncates none.

    Raises:
        ValueError: a value out of range.
    """

    unlimited = ("cap",)

    def __init__(self, cap: float = 2.0) -> None:
        check(cap >= 1, self, "cap", cap, "at least 1")
        self.cap = cap

    def weights(self, log_ratio: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Returns min(rho, cap), [B, K], and where rho was larger."""
        rho = ratios(log_ratio, used).detach()
        return rho.clamp(max=self.cap), rho > self.cap
