r"""The single-sample estimators of KL(pi || reference), functions of d = log pi - log reference (Schulman 2020,
http://joschu.net/blog/kl-approx.html; gradients: arXiv 2506.09477). Under samples of pi:

    k1 = d                  E[k1] = KL(pi || reference),  E[grad k1] = 0
    k2 = d^2 / 2            E[k2] != KL,                  E[grad k2] = grad KL(pi || reference)
    k3 = exp(-d) - 1 + d    E[k3] = KL(pi || reference),  E[grad k3] = grad KL(reference || pi)
"""

from __future__ import annotations

from torch import Tensor

MAX_EXPONENT = 20.0
"""d is clamped from below at -20 in k3, where it is 5e8 and would soon overflow; the gradient is 0 there."""


def k1(log_ratio: Tensor) -> Tensor:
    """The log-ratio itself."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Half the squared log-ratio."""
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-d) - 1 + d, computed as expm1(-d) + d, which keeps its sign in float32."""
    log_ratio = log_ratio.clamp(min=-MAX_EXPONENT)
    return (-log_ratio).expm1() + log_ratio
