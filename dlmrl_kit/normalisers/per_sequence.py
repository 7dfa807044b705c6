"""Mean over the tokens of a sample, then over samples (GRPO, arXiv 2402.03300)."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.normalisers.base import Normaliser


@register("normaliser", paper="arXiv 2402.03300")
class PerSequence(Normaliser):
    """Every sample counts the same, however many tokens it scores."""

    slotwise = False

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """1 / (tokens of the sample, those of a slot counted with its weight)."""
        tokens = (mask.sum(-1) * weight).sum(-1)
        return mask / tokens.masked_fill(tokens == 0, 1)[:, None, None]

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """The number of samples."""
        return weight.new_tensor(len(mask))
