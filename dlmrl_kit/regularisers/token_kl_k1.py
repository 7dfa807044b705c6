"""KL of single tokens by k1, the plain log-ratio: unbiased in value, no gradient in expectation."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.kl_estimators import k1
from dlmrl_kit.regularisers.token_base import TokenKLEstimator


@register("regulariser", paper="Schulman 2020, Approximating KL Divergence")
class TokenKLK1(TokenKLEstimator):
    """KL of tokens by k1 = d: unbiased in value, but its gradient pushes nowhere.

    It measures the KL; ``TokenKLK2`` descends it. Arguments, reads,
    returns, raises as ``TokenKLEstimator``.
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """The log-ratio itself."""
        return k1(log_ratio)
