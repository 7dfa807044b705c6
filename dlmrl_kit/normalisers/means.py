"""Normalisers by which every token, every step or every sample counts the same.

PerToken     mean over all tokens of the batch           d1, arXiv 2504.12216; DAPO, arXiv 2503.14476
PerStep      mean over the tokens of a step, then over steps     TraceRL and UniGRPO as released, arXiv 2509.06949
PerSequence  mean over the tokens of a sample, then over samples                            GRPO, arXiv 2402.03300
FixedLength  sum over tokens over a constant, mean over samples                          Dr. GRPO, arXiv 2503.20783
FixedStepLength  sum over the tokens of a step over a constant, mean over steps      the KL of TraceRL and UniGRPO

``PerStep`` and ``FixedStepLength`` count the same steps: a policy term by one and a KL by the other have the same
denominator, as in TraceRL's release, which takes the mean over a row's tokens in one and the sum in the other.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.normalisers.base import Normaliser


@register("normaliser", paper="arXiv 2504.12216; arXiv 2503.14476")
class PerToken(Normaliser):
    """Every token counts the same, whichever sample it belongs to: long completions weigh more."""

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Returns 1 for each token."""
        return mask.to(weight.dtype)

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Sums tokens times weight over the segments."""
        return (mask.sum(-1) * weight).sum()


@register("normaliser", paper="arXiv 2509.06949")
class PerStep(Normaliser):
    """Every selected step or segment counts the same, however many tokens it scores."""

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Returns 1 / (tokens of the segment) for each token."""
        return mask.to(weight.dtype) / mask.sum(-1, keepdim=True).clamp(min=1)

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Sums the weights of the segments that score at least one token."""
        return (mask.any(-1) * weight).sum()


@register("normaliser", paper="arXiv 2402.03300")
class PerSequence(Normaliser):
    """Every sample counts the same, however many tokens it scores."""

    segmentwise = False

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Returns 1 / n for each token of a sample, where n sums tokens times weight over its segments: [B, K, C]."""
        tokens = (mask.sum(-1) * weight).sum(-1)
        return mask / tokens.masked_fill(tokens == 0, 1)[:, None, None]

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Counts the samples."""
        return weight.new_tensor(len(mask))


@register("normaliser", paper="arXiv 2503.20783; arXiv 2509.06949")
class FixedLength(Normaliser):
    """Divides the sum over a sample's tokens by a constant, so that no sample's length scales its gradient.

    Args:
        length: what each sample's sum is divided by, in tokens; 1 keeps the sum.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = ("length",)

    def __init__(self, length: int = 1) -> None:
        check(length >= 1, self, "length", length, "at least 1")
        self.length = length

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Returns 1 / length for each token."""
        return mask.to(weight.dtype) / self.length

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Counts the samples."""
        return weight.new_tensor(len(mask))


@register("normaliser", paper="arXiv 2509.06949")
class FixedStepLength(FixedLength):
    """Divides the sum over the tokens of a selected step or segment by a constant, and averages over these steps.

    Arguments, raises as ``FixedLength``.
    """

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Sums the weights of the segments that score at least one token, as ``PerStep``."""
        return (mask.any(-1) * weight).sum()
