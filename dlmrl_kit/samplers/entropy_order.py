"""Entropy order (Dream, arXiv 2508.15487): the positions the model is most certain about first."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.behaviour import by_rows, entropy
from dlmrl_kit.core.registry import register
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.mask import StateScoreSampler


@register("sampler", paper="arXiv 2508.15487")
class EntropyOrder(StateScoreSampler):
    """Commits the positions of lowest entropy of softmax(logits). Arguments as ``MaskSampler``."""

    def scores(self, view: View) -> Tensor:
        """Minus the entropy in nats, [N]."""
        return -by_rows(lambda logits: entropy(logits.log_softmax(-1)), view.logits)
