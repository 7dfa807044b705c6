r"""The exact left-to-right log-probability of a masked model (JustGRPO, arXiv 2601.15165), one forward per token.

    log pi(o | q) = sum over l of log pi(o_l | q, o_1 .. o_{l-1}, the rest masked)

The log-probability of decoding one token per step from left to right, whatever sampler wrote the completion.
"""

from __future__ import annotations

import torch

from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments


@register("likelihood", paper="arXiv 2601.15165", unbiased=False, under="exact for LeftToRight, one token per step")
class AutoregressiveOrder(SegmentLikelihood):
    """Scores each token given those to its left, with the rest masked: one copy per position of the completion.

    Args:
        sampling_temperature, after_eos: as ``SegmentLikelihood``.

    All copies of a segment are in memory at once. For completions that ``LeftToRight`` sampled one token per step,
    ``StepTokenLogProb`` with ``AllSteps`` computes the same with a segment for each token, which an update can cut.

    Reads and writes as ``SegmentLikelihood``.
    """

    def __init__(self, sampling_temperature: bool = True, after_eos: bool = False) -> None:
        super().__init__(sampling_temperature, after_eos)

    def forwards(self, length: int) -> int:
        """Returns one forward for each position."""
        return length

    def masks(self, segments: Segments) -> Copies:
        """Makes copy l with the first l positions visible and position l scored."""
        index = torch.arange(segments.tokens.shape[1], device=segments.tokens.device)
        masked = (index >= index[:, None]) | ~segments.counted[:, None]
        return Copies(masked, segments.targets[:, None] & (index == index[:, None]))
