r"""Evidence lower bound with antithetic pairs of draws: the second masks what the first left, and one token more.

    draws 2 j and 2 j + 1 share a random order of the tokens:  the first x of them  /  the last L + 1 - x  are masked

Each draw alone is one of ``Elbo``, so the mean is unbiased for the same bound; few masked tokens in one draw of a pair
are many in the other. Pairs are stratified as single draws are in ``Elbo``.

The kit's own. What VRPO (arXiv 2505.19223) calls antithetic, masks that policy and reference share, holds for every
estimator here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import combine_seeds, uniforms
from dlmrl_kit.likelihoods.masking import count_from, first_of, inverse_share, partly_masked
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments


@register(
    "likelihood",
    unbiased=False,
    under="an unbiased estimate of a lower bound of the sequence log-probability",
)
class AntitheticElbo(SegmentLikelihood):
    """Estimates the lower bound of ``Elbo`` from draws in antithetic pairs, one partly masked copy per draw.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``.

    Use it with an even number of draws of ``WholeSequence``; a draw without partner is as in ``Elbo``. Reads and writes
    as ``SegmentLikelihood``; ``log_prob`` is a sum over tokens, ``token_log_prob`` holds its summands: the masked
    tokens, times L / x.
    """

    random_masks = True

    def masks(self, segments: Segments) -> Copies:
        """Makes one copy with exactly x, or L + 1 - x, masked tokens."""
        targets = segments.targets
        pair, second = segments.draw // 2, segments.draw % 2 == 1
        start = segments.shared_uniforms("count")
        total = targets.sum(-1)
        count = count_from((start + pair.double() / ((segments.draws + 1) // 2)) % 1, 1, total)
        order = uniforms(combine_seeds(segments.sample_seed, pair), targets.shape[1], purpose="order")
        count = torch.where(second, total + 1 - count, count)
        order = torch.where(second[:, None], -order, order)
        return partly_masked(segments, first_of(targets[:, None], order[:, None], count[:, None]))

    def weights(self, copies: Copies, segments: Segments) -> Tensor:
        """Returns L / x: float64 [R, 1, 1]."""
        return inverse_share(copies, segments)
