"""KL of whole completions by k1, the plain log-ratio: unbiased in value, without gradient in expectation."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.kl_estimators import k1
from dlmrl_kit.regularisers.sequence_base import SequenceKLEstimator


@register("regulariser", paper="Schulman 2020, Approximating KL Divergence")
class SequenceKLK1(SequenceKLEstimator):
    """KL of completions, per token, by k1 = d: unbiased in value, but its gradient pushes nowhere.

    It measures the KL; ``SequenceKLK2`` descends it. Arguments, reads,
    returns, raises as ``SequenceKLEstimator``.
    """

    slotwise = True  # linear in the log-ratio

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """The log-ratio itself."""
        return k1(log_ratio)
