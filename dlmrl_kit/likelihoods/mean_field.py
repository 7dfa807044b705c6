r"""Mean-field log-probability (d1, arXiv 2504.12216): every token from the fully masked completion, in one forward.

    log pi(o | q) ~ sum_l log pi(o_l | mask(q), all masked)

Tokens that are committed together are independent given the state; scored from the fully masked completion, all are.
"""

from __future__ import annotations

import torch

from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments, prompt_masks
from dlmrl_kit.registry import register
from dlmrl_kit.validate import check


@register("likelihood", paper="arXiv 2504.12216", unbiased=False, under="exact only for completions of one step")
class MeanField(SegmentLikelihood):
    """Tokens of each segment given the prompt alone; prompt tokens may be masked at random.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``.
        prompt_mask_share: probability with which each prompt token is masked, in [0, 1]; at 0 nothing is drawn, and
            there is nothing to redraw.

    Reads and writes as ``SegmentLikelihood``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        sampling_temperature: bool = True,
        after_eos: bool = False,
        redraw: bool = False,
        prompt_mask_share: float = 0.0,
    ) -> None:
        super().__init__(sampling_temperature, after_eos, redraw and prompt_mask_share > 0)
        check(0 <= prompt_mask_share <= 1, self, "prompt_mask_share", prompt_mask_share, "in [0, 1]")
        self.prompt_mask_share = prompt_mask_share
        self.random_masks = prompt_mask_share > 0

    def masks(self, segments: Segments) -> Copies:
        """One copy, masked everywhere."""
        targets = segments.targets[:, None]
        return Copies(torch.ones_like(targets), targets, prompt_masks(segments, self.prompt_mask_share, 1))
