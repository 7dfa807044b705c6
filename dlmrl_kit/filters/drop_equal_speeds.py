"""Keeps the groups whose tokens per forward differ (LightningRL, arXiv 2603.13319); the others say nothing of speed."""

from __future__ import annotations

import math

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import GROUP, REWARD, STEP_NUM_COMMITTED, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_max, tokens_per_forward
from dlmrl_kit.core.validate import check
from dlmrl_kit.filters.base import Filter


@register("filter", paper="arXiv 2603.13319")
class DropEqualSpeeds(Filter):
    """Keeps the groups in which tokens per forward, over the samples, range over at least ``least``.

    Args:
        least: positions per denoising step, at least 0.

    Reads as ``Filter``, ``("step", "valid")`` bool and ``("step", "num_committed")`` int64 [B, T]. Returns as it.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, least: float = 0.01) -> None:
        super().__init__()
        check(0 <= least < math.inf, self, "least", least, "at least 0 and finite")
        self.least = least
        self.in_keys = [REWARD, GROUP, STEP_VALID, STEP_NUM_COMMITTED]

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        """Returns where the group's fastest sample is so much faster than its slowest, bool [B]."""
        speed, group = tokens_per_forward(tensordict), tensordict[GROUP]
        return group_max(speed, group) + group_max(-speed, group) >= self.least
