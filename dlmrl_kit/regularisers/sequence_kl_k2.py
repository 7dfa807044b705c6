"""KL of whole completions by k2, half the squared log-ratio: the gradient of the KL (ESPO, arXiv 2512.03759)."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.kl_estimators import k2
from dlmrl_kit.regularisers.sequence_base import SequenceKLEstimator


@register("regulariser", paper="Schulman 2020, Approximating KL Divergence; arXiv 2506.09477; arXiv 2512.03759")
class SequenceKLK2(SequenceKLEstimator):
    """KL of completions, per token, by k2 = d^2 / 2: biased in value, the right gradient.

    Under samples of the current policy its expected gradient is that of the KL, as far as log pi is exact.
    Arguments, reads, returns, raises as ``SequenceKLEstimator``.
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """Half the squared log-ratio."""
        return k2(log_ratio)
