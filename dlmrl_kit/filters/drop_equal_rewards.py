"""Keeps the groups in which rewards differ (dynamic sampling of DAPO, arXiv 2503.14476); the others have no advantage.

DAPO samples on until the batch is full again. Here an update trains on the groups that are left.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import GROUP, REWARD
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_max
from dlmrl_kit.filters.base import Filter


@register("filter", paper="arXiv 2503.14476")
class DropEqualRewards(Filter):
    """Keeps the groups in which rewards differ. Reads and returns as ``Filter``."""

    def __init__(self) -> None:
        super().__init__()

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        """Returns where the group's highest reward is above its lowest, bool [B]."""
        reward, group = tensordict[REWARD], tensordict[GROUP]
        return group_max(reward, group) > -group_max(-reward, group)
