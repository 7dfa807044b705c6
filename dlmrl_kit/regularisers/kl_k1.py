r"""k1, the plain log-ratio (Schulman 2020, http://joschu.net/blog/kl-approx.html).

    k1 = d,    d = log pi - log reference

Under samples of pi:  E[k1] = KL(pi || reference),  E[grad k1] = E[grad log pi] = 0.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.base import KLEstimator
from dlmrl_kit.regularisers.kl_estimators import k1


@register("regulariser", paper="Schulman 2020, Approximating KL Divergence")
class KLK1(KLEstimator):
    """KL by k1 = d: unbiased in value, but its gradient pushes nowhere.

    As a loss it measures the KL and adds noise to the gradient; ``KLK2`` and ``KLExact`` descend it. Arguments, reads,
    returns, raises as ``KLEstimator``.
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """The log-ratio itself."""
        return k1(log_ratio)
