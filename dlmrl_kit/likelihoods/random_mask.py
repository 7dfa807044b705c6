r"""Random partial masks (UniGRPO as released in dLLM-RL, arXiv 2505.15809): masked tokens given the visible ones.

    t ~ U(lower, upper),   log pi ~ sum over masked l of log pi(o_l | q, visible o),   each l masked with probability t

Without the factor 1 / t that would make the sum an evidence lower bound: tokens are scored, not the sequence.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.likelihoods.masking import each_with, partly_masked
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments


@register("likelihood", paper="arXiv 2505.15809", unbiased=False, under="scores tokens in states never visited")
class RandomMask(SegmentLikelihood):
    """Scores the masked tokens of one randomly masked copy per segment; the prompt stays visible.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``.
        lower, upper: the mask ratio is drawn uniformly between them; 0 <= lower <= upper <= 1.

    Reads and writes as ``SegmentLikelihood``; ``("selected", "token_mask")`` holds the masked tokens.

    Raises:
        ValueError: a value out of range.
    """

    random_masks = True

    def __init__(
        self,
        sampling_temperature: bool = True,
        after_eos: bool = False,
        redraw: bool = False,
        lower: float = 0.1,
        upper: float = 0.9,
    ) -> None:
        super().__init__(sampling_temperature, after_eos, redraw)
        check(0 <= lower <= 1, self, "lower", lower, "in [0, 1]")
        check(lower <= upper <= 1, self, "upper", upper, f"in [lower, 1] = [{lower}, 1]")
        self.lower = lower
        self.upper = upper

    def ratio(self, segments: Segments) -> Tensor:
        """Draws the mask ratio of each segment: float64 [R]."""
        return self.lower + (self.upper - self.lower) * segments.uniforms("ratio")

    def masks(self, segments: Segments) -> Copies:
        """Makes one copy."""
        return partly_masked(segments, each_with(segments, self.ratio(segments)))
