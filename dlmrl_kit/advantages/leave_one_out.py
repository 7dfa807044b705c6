"""Leave-one-out advantage (RLOO, arXiv 2402.14740): A_i = R_i - mean of the other members' R.

The baseline does not depend on the sample's own actions, so the gradient is unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_sum


@register("advantage", paper="arXiv 2402.14740", unbiased=True)
class LeaveOneOut(GroupAdvantage):
    """Credits each sample with its reward minus the mean reward of the other samples of its group.

    Reads and writes as ``GroupAdvantage``.
    """

    def __init__(self) -> None:
        super().__init__()

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Returns R - mean of the others; R itself in a group of one."""
        exact = returns.double()
        others = group_sum(torch.ones_like(exact), group) - 1
        baseline = (group_sum(exact, group) - exact) / others.clamp(min=1)
        return (exact - baseline).to(returns.dtype)
