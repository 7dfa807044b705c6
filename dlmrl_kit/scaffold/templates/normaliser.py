"""Divides by the square root of a step's length."""

from __future__ import annotations

from dlmrl_kit import register
from dlmrl_kit.normalisers.base import Normaliser
from torch import Tensor


@register("normaliser")
class AcmeNormaliser(Normaliser):
    """Divides the sum over the tokens of a step by the root of their number, and averages over steps."""

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Returns what each token in ``mask`` (bool) counts, [B, K, C]; ``weight`` is the steps' [B, K]."""
        return mask.to(weight.dtype) / mask.sum(-1, keepdim=True).clamp(min=1).to(weight.dtype).sqrt()

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Sums the weights of the steps that score at least one token."""
        return (mask.any(-1) * weight).sum()
