"""Normalisers with one mistake each."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.normalisers.means import FixedLength, PerSequence


class EmptyShares(PerSequence):
    """Divides by a number of tokens that may be 0."""

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        return mask / (mask.sum(-1) * weight).sum(-1)[:, None, None]


class CountsTheBatch(FixedLength):
    """Divides by the longest sample of the batch. Arguments as ``FixedLength``.

    Args:
        length: ignored.
    """

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        return mask.to(weight.dtype) / mask.sum((1, 2)).max().clamp(min=1)


class CutsSamples(PerSequence):
    """Says that shares do not depend on other segments."""

    segmentwise = True


class LetsPaddingIn(FixedLength):
    """Multiplies by the mask. Arguments as ``FixedLength``.

    Args:
        length: as there.
    """

    def total(self, values: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        return (self.shares(mask, weight) * weight[..., None] * values).sum()
