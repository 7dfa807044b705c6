"""KL of whole completions by k3, non-negative and unbiased."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.kl_estimators import k3
from dlmrl_kit.regularisers.sequence_base import SequenceKLEstimator


@register("regulariser", paper="Schulman 2020, Approximating KL Divergence")
class SequenceKLK3(SequenceKLEstimator):
    """KL of completions, per token, by k3 = exp(-d) - 1 + d: unbiased, never negative, the gradient of the other KL.

    The exponential of a whole completion's log-ratio has a large variance; d is clamped from below at -20.
    Arguments, reads, returns, raises as ``SequenceKLEstimator``.
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """exp(-d) - 1 + d."""
        return k3(log_ratio)
