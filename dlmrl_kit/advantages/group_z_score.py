"""Standardised advantage (GRPO, arXiv 2402.03300): A_i = (R_i - mean) / (std + eps), both over the group.

Dividing by the standard deviation of the same returns is biased, and weights prompts by how rare success is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_max, group_mean, group_sum
from dlmrl_kit.core.validate import check


@register("advantage", paper="arXiv 2402.03300", unbiased=False, under="divided by the group's standard deviation")
class GroupZScore(GroupAdvantage):
    """Credits each sample with its reward standardised within its group.

    Reads and writes as ``GroupAdvantage``.

    Args:
        eps: added to the standard deviation, at least 0; a group of equal returns gets 0 in any case.
        correction: 0 for the standard deviation of the group itself (TraceRL, arXiv 2509.06949), 1 for the sample
            standard deviation, whose square is divided by G - 1 (TRL; JustGRPO, arXiv 2601.15165).

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = ("correction",)

    def __init__(self, eps: float = 1e-4, correction: int = 0) -> None:
        super().__init__()
        check(0 <= eps < math.inf, self, "eps", eps, "at least 0 and finite")
        check(correction in (0, 1), self, "correction", correction, "0 or 1")
        self.eps = eps
        self.correction = correction

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Returns (R - mean) / (std + eps); 0 in a group of one."""
        exact = returns.double()
        equal = group_max(exact, group) == -group_max(-exact, group)
        centred = (exact - group_mean(exact, group)).masked_fill(equal, 0)  # no spread of rounding errors
        freedom = group_sum(torch.ones_like(exact), group) - self.correction
        std = (group_sum(centred.square(), group) / freedom.clamp(min=1)).sqrt()
        return (centred / (std + self.eps).masked_fill(equal, 1)).to(returns.dtype)
