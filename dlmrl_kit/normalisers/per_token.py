"""Mean over all tokens of the batch (d1, arXiv 2504.12216; DAPO, arXiv 2503.14476)."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.normalisers.base import Normaliser


@register("normaliser", paper="arXiv 2504.12216; arXiv 2503.14476")
class PerToken(Normaliser):
    """Every token counts the same, whichever sample it belongs to: long completions weigh more."""

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """1 for each token."""
        return mask.to(weight.dtype)

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """The number of tokens, those of a slot counted with its weight."""
        return (mask.sum(-1) * weight).sum()
