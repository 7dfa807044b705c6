"""Entropy order (Dream, arXiv 2508.15487): commit the positions that the model is most certain about.

    score_i = sum_v p_i(v) log p_i(v),    p_i = softmax(logits_i)

The positions depend on the state alone, so the exact log-probability is that of the tokens.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.behaviour import by_rows, entropy
from dlmrl_kit.core.registry import register
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.mask import StateScoreSampler


@register("sampler", paper="arXiv 2508.15487")
class EntropyOrder(StateScoreSampler):
    """Commits the positions where softmax(logits) has the lowest entropy.

    Arguments as ``MaskSampler``.
    """

    def scores(self, view: View) -> Tensor:
        """Scores each position by minus its entropy in nats: [N]."""
        return -by_rows(lambda logits: entropy(logits.log_softmax(-1)), view.logits)
