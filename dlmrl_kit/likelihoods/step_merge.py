r"""Segment replay (d2-StepMerge, arXiv 2509.21474; TraceRL's shrunk trajectory, arXiv 2509.06949).

    log pi(x_end | x_start) ~ sum over positions l committed in between of log pi(o_l | x_start)

One forward per segment: exact for segments of one step whose positions depend on the state alone, a mean-field
approximation within longer ones. With one segment it is ``MeanField``.
"""

from __future__ import annotations

from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments, prompt_masks
from dlmrl_kit.registry import register
from dlmrl_kit.validate import check


@register(
    "likelihood",
    paper="arXiv 2509.21474; arXiv 2509.06949",
    unbiased=False,
    under="exact for segments of one step of samplers that choose positions from the state alone, with after_eos=True",
)
class StepMerge(SegmentLikelihood):
    """Tokens of each segment given the state at its start.

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
        """One copy: the state at the start of the segment."""
        prompt_masked = prompt_masks(segments, self.prompt_mask_share, 1)
        return Copies(segments.masked[:, None], segments.targets[:, None], prompt_masked)
