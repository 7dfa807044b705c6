r"""k2, half the squared log-ratio (Schulman 2020, http://joschu.net/blog/kl-approx.html; gradient: arXiv 2506.09477).

    k2 = d^2 / 2,    d = log pi - log reference

Under samples of pi:  E[k2] != KL,  E[grad k2] = E[d grad log pi] = grad KL(pi || reference).
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.base import KLEstimator
from dlmrl_kit.regularisers.kl_estimators import k2


@register("regulariser", paper="Schulman 2020, Approximating KL Divergence; arXiv 2506.09477")
class KLK2(KLEstimator):
    """KL by k2 = d^2 / 2: biased in value, the right gradient.

    Under samples of the current policy its expected gradient is exactly that of KL(pi || reference), so this is the
    estimator to descend; the value it reports is not the KL. Arguments, reads, returns, raises as ``KLEstimator``.
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """Half the squared log-ratio."""
        return k2(log_ratio)
