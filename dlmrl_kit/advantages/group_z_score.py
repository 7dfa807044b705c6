"""Standardised advantage (GRPO, arXiv 2402.03300): A_i = (R_i - mean) / (std + eps), std over the group (population).

Dividing by the standard deviation of the same returns is biased, and weights prompts by how rare success is.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage, group_mean
from dlmrl_kit.registry import register
from dlmrl_kit.validate import check


@register("advantage", paper="arXiv 2402.03300", unbiased=False, under="divided by the group's standard deviation")
class GroupZScore(GroupAdvantage):
    """Return standardised within the group. Reads and writes as ``GroupAdvantage``.

    Args:
        eps: added to the standard deviation, positive; a group of equal returns gets 0.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, eps: float = 1e-4) -> None:
        super().__init__()
        check(eps > 0, self, "eps", eps, "positive")
        self.eps = eps

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """(R - mean) / (std + eps)."""
        exact = returns.double()
        centred = exact - group_mean(exact, group)
        std = group_mean(centred.square(), group).sqrt()
        return (centred / (std + self.eps)).to(returns.dtype)
