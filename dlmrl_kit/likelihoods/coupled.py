r"""Coupled masks (coupled-GRPO of DiffuCoder, arXiv 2506.20639): each token scored twice, in three forwards.

    r ~ U(lower, upper),   each l in A with probability r, else in B
    log pi(o_l) ~ 1/2 log pi(o_l | q) + 1/2 [ log pi(o_l | q, o_B) / r        if l in A
                                              log pi(o_l | q, o_A) / (1 - r)  if l in B ]

The first term is that of ``MeanField``. The weights make these pseudo log-probabilities, as published: they change by
up to 1 / (2 r) times as much as the log-probability in the copy does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.likelihoods.masking import each_with, partly_masked
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments


@register("likelihood", paper="arXiv 2506.20639", unbiased=False, under="weighted scores of states never visited")
class Coupled(SegmentLikelihood):
    """Scores tokens in the fully masked copy and in one of two complementary ones, weighted; the prompt stays visible.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``.
        lower, upper: the mask ratio of the pair is drawn uniformly between them; 0 < lower <= upper < 1.

    Reads and writes as ``SegmentLikelihood``.

    Raises:
        ValueError: a value out of range.
    """

    random_masks = True

    def __init__(
        self,
        sampling_temperature: bool = True,
        after_eos: bool = False,
        redraw: bool = False,
        lower: float = 0.2,
        upper: float = 0.8,
    ) -> None:
        super().__init__(sampling_temperature, after_eos, redraw)
        check(0 < lower < 1, self, "lower", lower, "above 0 and below 1")
        check(lower <= upper < 1, self, "upper", upper, f"at least lower = {lower} and below 1")
        self.lower = lower
        self.upper = upper

    def ratio(self, segments: Segments) -> Tensor:
        """Draws the mask ratio of the first of each segment's pair: float64 [R]."""
        return self.lower + (self.upper - self.lower) * segments.uniforms("ratio")

    def forwards(self, length: int) -> int:
        """Returns one forward for each copy."""
        return 3

    def masks(self, segments: Segments) -> Copies:
        """Makes three copies: all tokens masked, some of them, the others."""
        some = each_with(segments, self.ratio(segments))
        return partly_masked(segments, torch.cat([torch.ones_like(some), some, ~some], dim=1))

    def weights(self, copies: Copies, segments: Segments) -> Tensor:
        """Returns 1/2, 1 / (2 r), 1 / (2 (1 - r)): float64 [R, 3, 1]."""
        ratio = self.ratio(segments)
        return 0.5 / torch.stack([torch.ones_like(ratio), ratio, 1 - ratio], dim=1)[..., None]
