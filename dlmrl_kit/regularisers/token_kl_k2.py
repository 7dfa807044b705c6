"""KL of single tokens by k2, half the squared log-ratio: the gradient of the KL (MDPO, arXiv 2508.13148)."""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.kl_estimators import k2
from dlmrl_kit.regularisers.token_base import TokenKLEstimator


@register("regulariser", paper="Schulman 2020, Approximating KL Divergence; arXiv 2506.09477; arXiv 2508.13148")
class TokenKLK2(TokenKLEstimator):
    """KL of tokens by k2 = d^2 / 2: biased in value, the right gradient.

    Where tokens are samples of the distributions that score them, its expected gradient is that of their KL.
    Arguments, reads, returns, raises as ``TokenKLEstimator``.
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """Half the squared log-ratio."""
        return k2(log_ratio)
