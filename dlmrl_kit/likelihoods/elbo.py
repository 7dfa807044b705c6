r"""Evidence lower bound of the sequence log-probability (LLaDA, arXiv 2502.09992; BGPO, arXiv 2510.11683).

    B = E over x ~ U{1..L} and sets M of x tokens of  L / x  sum over l in M of log pi(o_l | q, o outside M)
      = E over orders of sum over l of log pi(o_l | q, o before l)
     <= log E over orders of product over l of pi(o_l | q, o before l),

the log-probability of decoding one token per step in random order. Each draw masks exactly x tokens; the x of the K
draws of ``WholeSequence`` are stratified: x_k = 1 + floor(L t_k), t_k = (u + k / K) mod 1. The mean over the draws is
unbiased for B, whatever K is.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.masking import count_from, first_of, inverse_share, partly_masked
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments


@register(
    "likelihood",
    paper="arXiv 2502.09992; arXiv 2510.11683",
    unbiased=False,
    under="an unbiased estimate of a lower bound of the sequence log-probability",
)
class Elbo(SegmentLikelihood):
    """Estimates a lower bound of the completion's log-probability, one partly masked copy per draw.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``.

    Reads and writes as ``SegmentLikelihood``; ``log_prob`` is a sum over tokens, ``token_log_prob`` holds its summands:
    the masked tokens, times L / x.
    """

    random_masks = True

    def masks(self, segments: Segments) -> Copies:
        """Makes one copy with exactly x masked tokens."""
        targets = segments.targets
        count = count_from(segments.stratified_uniforms("count"), 1, targets.sum(-1))
        chosen = first_of(targets[:, None], segments.position_uniforms("order"), count[:, None])
        return partly_masked(segments, chosen)

    def weights(self, copies: Copies, segments: Segments) -> Tensor:
        """Returns L / x: float64 [R, 1, 1]."""
        return inverse_share(copies, segments)
