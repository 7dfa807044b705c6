"""Drops the groups whose rewards hardly differ."""

from __future__ import annotations

import math

from dlmrl_kit import register
from dlmrl_kit.core.keys import GROUP, REWARD
from dlmrl_kit.core.trajectory import group_mean
from dlmrl_kit.core.validate import check
from dlmrl_kit.filters.base import Filter
from tensordict import TensorDictBase
from torch import Tensor


@register("filter")
class AcmeFilter(Filter):
    """Keeps the groups in which the standard deviation of the rewards is large enough. Reads, returns as ``Filter``.

    Args:
        deviation: the smallest standard deviation of a group that is kept, at least 0 and finite.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, deviation: float = 0.05) -> None:
        super().__init__()
        check(0 <= deviation < math.inf, self, "deviation", deviation, "at least 0 and finite")
        self.deviation = deviation

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        """Returns which samples are kept, bool [B]: whole groups."""
        reward, group = tensordict[REWARD].double(), tensordict[GROUP]
        variance = group_mean((reward - group_mean(reward, group)) ** 2, group)
        return variance.sqrt() >= self.deviation
