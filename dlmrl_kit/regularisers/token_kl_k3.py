"""KL of single tokens by k3, non-negative and unbiased (d1, arXiv 2504.12216)."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.kl_estimators import k3
from dlmrl_kit.regularisers.token_base import TokenKLEstimator


@register("regulariser", paper="Schulman 2020, Approximating KL Divergence; arXiv 2504.12216; arXiv 2509.06949")
class TokenKLK3(TokenKLEstimator):
    """KL of tokens by k3 = exp(-d) - 1 + d: unbiased in value, never negative, the gradient of the other KL.

    d1 compares with the frozen reference and takes the mean over tokens; TraceRL compares with the old policy. d
    is clamped from below at -20. Arguments, reads, returns, raises as ``TokenKLEstimator``.
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """exp(-d) - 1 + d."""
        return k3(log_ratio)
