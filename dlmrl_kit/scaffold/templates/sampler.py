"""Commits the positions of the most probable best token."""

from __future__ import annotations

from dlmrl_kit import register
from dlmrl_kit.core.behaviour import by_rows
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.mask import StateScoreSampler
from torch import Tensor


@register("sampler")
class AcmeSampler(StateScoreSampler):
    """Commits the positions where the best token of softmax(logits) is most probable.

    The positions depend on the state alone, so the exact log-probability of an action is that of its tokens.

    Arguments as ``MaskSampler``.
    """

    def scores(self, view: View) -> Tensor:
        """Scores each of the N open positions: [N]; the highest are committed."""
        return by_rows(lambda logits: logits.log_softmax(-1).amax(-1), view.logits)
