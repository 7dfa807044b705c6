"""Mean-centred advantage (Dr. GRPO, arXiv 2503.20783; wd1, EGSPO): A_i = R_i - mean over the group of R.

A sample's own return is in the mean, which scales the expected gradient by 1 - 1/G.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_mean


@register("advantage", paper="arXiv 2503.20783", unbiased=True, scale="1 - 1/G", under="groups of equal size G")
class GroupMean(GroupAdvantage):
    """Credits each sample with its reward minus the mean reward of its group.

    Reads and writes as ``GroupAdvantage``.
    """

    def __init__(self) -> None:
        super().__init__()

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Returns R - mean; 0 in a group of one."""
        exact = returns.double()
        return (exact - group_mean(exact, group)).to(returns.dtype)
