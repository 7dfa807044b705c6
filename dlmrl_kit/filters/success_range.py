"""Keeps prompts of medium difficulty: the share of successes in the group is in a range (TraceRL, arXiv 2509.06949)."""

from __future__ import annotations

import math

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import GROUP, REWARD
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_mean
from dlmrl_kit.core.validate import check
from dlmrl_kit.filters.base import Filter


@register("filter", paper="arXiv 2509.06949; arXiv 2505.15809")
class SuccessRange(Filter):
    """Keeps the groups whose share of successes is in a range, both ends included. Reads and returns as ``Filter``.

    Args:
        low: smallest share of successes, in [0, 1].
        high: largest share of successes, in [low, 1].
        success: the lowest reward of a success.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, low: float = 0.2, high: float = 0.8, success: float = 1.0) -> None:
        super().__init__()
        check(0 <= low <= 1, self, "low", low, "in [0, 1]")
        check(low <= high <= 1, self, "high", high, f"in [low, 1] with low = {low}")
        check(math.isfinite(success), self, "success", success, "finite")
        self.low = low
        self.high = high
        self.success = success

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        """Returns where the share of rewards of at least ``success`` in the group is in the range, bool [B]."""
        solved = (tensordict[REWARD] >= self.success).double()
        share = group_mean(solved, tensordict[GROUP])
        return (share >= self.low) & (share <= self.high)
