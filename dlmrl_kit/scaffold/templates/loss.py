"""A policy gradient that trusts good samples more than bad ones."""

from __future__ import annotations

import math

import torch
from dlmrl_kit import register
from dlmrl_kit.core.keys import SELECTED_ADVANTAGE, SELECTED_LOG_PROB, SELECTED_WEIGHT
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import Objective, mean_over, weighted_sum
from tensordict import TensorDictBase
from torch import Tensor


@register("loss", unbiased=False)
class AcmeLoss(Objective):
    """Minimises minus advantage times log-probability, where negative advantages are multiplied by ``negative``.

    Args:
        negative: at least 0 and finite; 1 is REINFORCE.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "advantage")`` and ``("selected", "weight")``,
    all [B, K]. Returns ``loss_objective`` and ``log_prob`` (mean over the segments of non-zero weight). ``count`` is B.

    Raises:
        ValueError: a value out of range.
    """

    segmentwise = True

    def __init__(self, negative: float = 0.5) -> None:
        super().__init__([SELECTED_LOG_PROB, SELECTED_ADVANTAGE, SELECTED_WEIGHT], ["log_prob"])
        check(0 <= negative < math.inf, self, "negative", negative, "at least 0 and finite")
        self.negative = negative

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum over steps and samples, and what is logged."""
        weight = tensordict[SELECTED_WEIGHT]
        used = weight != 0
        log_prob = where_used(tensordict[SELECTED_LOG_PROB], used)
        advantage = where_used(tensordict[SELECTED_ADVANTAGE], used).detach()
        trusted = torch.where(advantage < 0, self.negative * advantage, advantage)
        return -weighted_sum(trusted * log_prob, weight), {"log_prob": mean_over(log_prob, used)}
