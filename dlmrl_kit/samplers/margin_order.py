"""Margin order (arXiv 2502.06768; Dream's ``topk_margin``): largest gap between the two best tokens first."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.behaviour import by_rows
from dlmrl_kit.core.registry import register
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.mask import StateScoreSampler


@register("sampler", paper="arXiv 2502.06768")
class MarginOrder(StateScoreSampler):
    """Commits the positions with the largest probability margin of softmax(logits). Arguments as ``MaskSampler``."""

    def scores(self, view: View) -> Tensor:
        """Probability of the best token minus that of the second best, [N]."""
        best = by_rows(lambda logits: logits.softmax(-1).topk(2, dim=-1).values, view.logits)
        return best[..., 0] - best[..., 1]
