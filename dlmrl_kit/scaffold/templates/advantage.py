"""Credits samples with what their reward is above the group's mean, less where that is small."""

from __future__ import annotations

import math

from dlmrl_kit import register
from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.core.trajectory import group_mean
from dlmrl_kit.core.validate import check
from torch import Tensor


@register("advantage", unbiased=False)
class AcmeAdvantage(GroupAdvantage):
    """Credits each sample with its reward minus the group's mean, drawn towards 0 by ``margin``.

    Args:
        margin: what is taken off the size of each difference, at least 0 and finite; 0 is the plain difference.

    Reads and writes as ``GroupAdvantage``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        check(0 <= margin < math.inf, self, "margin", margin, "at least 0 and finite")
        self.margin = margin

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Returns the advantage of each sample, [B], from its return [B] and the number of its group, int64 [B]."""
        exact = returns.double()
        difference = exact - group_mean(exact, group)
        return (difference.sign() * (difference.abs() - self.margin).clamp(min=0)).to(returns.dtype)
