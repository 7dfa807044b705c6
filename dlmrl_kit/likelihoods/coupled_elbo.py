r"""Evidence lower bound from complementary masks (ESPO, arXiv 2512.03759): every token scored once, in two forwards.

    k ~ U{0..L},   M a set of k tokens,   M' the others
    B ~ 1/2 [ (L + 1) / k        sum over l in M  of log pi(o_l | q, o outside M)
            + (L + 1) / (L - k)  sum over l in M' of log pi(o_l | q, o outside M') ]

Each half alone is unbiased for the bound of ``Elbo``, where k = 0 adds nothing to the first half and k = L nothing to
the second. The k of the K draws of ``WholeSequence`` are stratified.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.masking import count_from, first_of, partly_masked
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments


@register(
    "likelihood",
    paper="arXiv 2512.03759",
    unbiased=False,
    under="an unbiased estimate of a lower bound of the sequence log-probability",
)
class CoupledElbo(SegmentLikelihood):
    """Estimates the lower bound of ``Elbo`` from two complementary copies per draw, stratified over the draws.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``. The released code has ``after_eos`` (its L
            is the generation length).

    Reads and writes as ``SegmentLikelihood``; ``log_prob`` is a sum over tokens, ``token_log_prob`` holds its summands.
    """

    random_masks = True

    def forwards(self, length: int) -> int:
        """Returns one forward for each copy."""
        return 2

    def masks(self, segments: Segments) -> Copies:
        """Makes two copies: k of the tokens masked, and the others."""
        targets = segments.targets
        count = count_from(segments.stratified_uniforms("count"), 0, targets.sum(-1))
        some = first_of(targets[:, None], segments.position_uniforms("order"), count[:, None])
        return partly_masked(segments, torch.cat([some, ~some], dim=1))

    def weights(self, copies: Copies, segments: Segments) -> Tensor:
        """Returns (L + 1) / (2 k) and (L + 1) / (2 (L - k)): float64 [R, 2, 1]."""
        total = segments.targets.sum(-1)[:, None] + 1
        return (total / (2 * copies.scored.sum(-1)).clamp(min=1).double())[..., None]
