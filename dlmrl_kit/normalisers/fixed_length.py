"""Sum over tokens divided by a constant length, mean over samples (Dr. GRPO, arXiv 2503.20783; TraceRL for SDAR)."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.normalisers.base import Normaliser


@register("normaliser", paper="arXiv 2503.20783; arXiv 2509.06949")
class FixedLength(Normaliser):
    """The sum over a sample's tokens divided by a constant, so that no sample's length scales its gradient.

    Args:
        length: what each sample's sum is divided by, in tokens; 1 keeps the sum.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, length: int = 1) -> None:
        check(length >= 1, self, "length", length, "at least 1")
        self.length = length

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """1 / length for each token."""
        return mask.to(weight.dtype) / self.length

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """The number of samples."""
        return weight.new_tensor(len(mask))
