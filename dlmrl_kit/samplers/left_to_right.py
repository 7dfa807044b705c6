"""Left to right: the autoregressive order (JustGRPO, arXiv 2601.15165).

The positions depend on the state alone, so the exact log-probability is that of the tokens.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.mask import StateScoreSampler


@register("sampler", paper="arXiv 2601.15165")
class LeftToRight(StateScoreSampler):
    """Commits the leftmost masked positions.

    Arguments as ``MaskSampler``.
    """

    def scores(self, view: View) -> Tensor:
        """Scores each position by minus its index: [N]."""
        return -view.index[1].to(view.logits.dtype)
