r"""Evidence lower bound by quadrature over the mask ratio (semi-deterministic Monte Carlo of GDPO, arXiv 2510.08554).

    B = integral over t in (0, 1) of f(t) dt  ~  sum over nodes k of w_k f(t_k),
    f(t) = E over sets M of x = max(1, floor(t L)) tokens of  L / x  sum over l in M of log pi(o_l | q, o outside M)

with the K Gauss-Legendre nodes and weights (K = draws of ``WholeSequence``) and one random set per node. Most of the
variance of an ELBO is that of t, which is gone; the price is the error of the quadrature and of rounding t L down.
The third-party ports weight by 1 / t: with x / L masked, L / x is the weight that keeps a constant integrand.
"""

from __future__ import annotations

import functools

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.masking import first_of, inverse_share, partly_masked
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments


@functools.cache
def gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Returns the nodes in (0, 1), ascending, and the weights, which sum to 1: float64 [count] each."""
    nodes, weights = leggauss(count)
    return torch.from_numpy(nodes).add(1).div(2), torch.from_numpy(weights).div(2)


@register(
    "likelihood",
    paper="arXiv 2510.08554",
    unbiased=False,
    under="a lower bound of the sequence log-probability, up to the error of the quadrature",
)
class QuadratureElbo(SegmentLikelihood):
    """Estimates the lower bound of ``Elbo`` from one partly masked copy at each node of a Gauss-Legendre rule.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``.

    For ``WholeSequence``: segment k has node k, and its ``log_prob`` holds K times the node's weight, so that the mean
    over the K draws is the quadrature sum. Reads and writes as ``SegmentLikelihood``; ``log_prob`` is a sum over
    tokens, ``token_log_prob`` holds its summands.
    """

    random_masks = True

    def masks(self, segments: Segments) -> Copies:
        """Makes one copy with exactly max(1, floor(t L)) masked tokens."""
        targets = segments.targets
        node = gauss_legendre(segments.draws)[0].to(targets.device)[segments.draw]
        count = (node * targets.sum(-1)).floor().clamp(min=1)
        return partly_masked(segments, first_of(targets[:, None], segments.position_uniforms("order"), count[:, None]))

    def weights(self, copies: Copies, segments: Segments) -> Tensor:
        """Returns K w_k L / x: float64 [R, 1, 1]."""
        weight = gauss_legendre(segments.draws)[1].to(segments.draw.device)[segments.draw]
        return (segments.draws * weight)[:, None, None] * inverse_share(copies, segments)
