"""Left to right: the autoregressive order (JustGRPO, arXiv 2601.15165)."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.mask import StateScoreSampler


@register("sampler", paper="arXiv 2601.15165")
class LeftToRight(StateScoreSampler):
    """Commits the leftmost masked positions. Arguments as ``MaskSampler``."""

    def scores(self, view: View) -> Tensor:
        """Minus the position, [N]."""
        return -view.index[1].to(view.logits.dtype)
