r"""Segment replay (d2-StepMerge, arXiv 2509.21474; TraceRL's shrunk trajectory, arXiv 2509.06949).

    log pi(x_end | x_start) ~ sum over positions l committed in between of log pi(o_l | x_start)

One forward per segment: exact for segments of one step whose positions depend on the state alone, a mean-field
approximation within longer ones. With one segment it is ``MeanField``.
"""

from __future__ import annotations

from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.segments import Copies, OneCopyLikelihood, Segments


@register(
    "likelihood",
    paper="arXiv 2509.21474; arXiv 2509.06949",
    unbiased=False,
    under="exact for segments of one step of samplers that choose positions from the state alone, with after_eos=True",
)
class StepMerge(OneCopyLikelihood):
    """Scores the tokens of each segment given the state at its start.

    Arguments, reads, writes, raises as ``OneCopyLikelihood``.
    """

    def masks(self, segments: Segments) -> Copies:
        """Makes one copy: the state at the start of the segment."""
        return Copies(segments.masked[:, None], segments.targets[:, None], self.prompt_masks(segments))
