"""Mean over the tokens of a step, then over steps (TraceRL and UniGRPO as released, arXiv 2509.06949)."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.normalisers.base import Normaliser


@register("normaliser", paper="arXiv 2509.06949")
class PerStep(Normaliser):
    """Every selected step (segment, masked copy) counts the same, however many tokens it scores."""

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """1 / (tokens of the slot)."""
        return mask.to(weight.dtype) / mask.sum(-1, keepdim=True).clamp(min=1)

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """The total weight of the slots that score at least one token."""
        return (mask.any(-1) * weight).sum()
