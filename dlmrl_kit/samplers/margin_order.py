"""Margin order (arXiv 2502.06768; Dream's ``topk_margin``): commit where the best token is far ahead of the second.

    score_i = p_i(v1) - p_i(v2),    p_i = softmax(logits_i), v1 and v2 its two most probable tokens

The positions depend on the state alone, so the exact log-probability is that of the tokens.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.behaviour import by_rows
from dlmrl_kit.core.registry import register
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.mask import StateScoreSampler


@register("sampler", paper="arXiv 2502.06768")
class MarginOrder(StateScoreSampler):
    """Commits the positions where the two best tokens of softmax(logits) are farthest apart.

    Arguments as ``MaskSampler``.
    """

    def scores(self, view: View) -> Tensor:
        """Scores each position by the probability of its best token minus that of the second best: [N]."""
        best = by_rows(lambda logits: logits.softmax(-1).topk(2, dim=-1).values, view.logits)
        return best[..., 0] - best[..., 1]
