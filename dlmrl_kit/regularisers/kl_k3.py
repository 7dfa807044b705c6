r"""k3, non-negative and unbiased (Schulman 2020, http://joschu.net/blog/kl-approx.html), as in d1 and EGSPO.

    k3 = exp(-d) - 1 + d,    d = log pi - log reference

Under samples of pi:  E[k3] = KL(pi || reference),  E[grad k3] = grad KL(reference || pi).  Computed as expm1(-d) + d,
which keeps its sign in float32.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.base import KLEstimator
from dlmrl_kit.regularisers.kl_estimators import k3


@register("regulariser", paper="Schulman 2020, Approximating KL Divergence; arXiv 2504.12216; arXiv 2603.12554")
class KLK3(KLEstimator):
    """KL by k3 = exp(-d) - 1 + d: unbiased in value, never negative, the gradient of the other KL.

    Descending it descends KL(reference || pi): the same to first order near the reference, another thing far from it.
    d is clamped from below at -20, where k3 is 5e8 and would soon overflow; the gradient is 0 there. Arguments, reads,
    returns, raises as ``KLEstimator``.
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """exp(-d) - 1 + d."""
        return k3(log_ratio)
