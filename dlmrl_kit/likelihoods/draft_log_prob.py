r"""Log-probability of a step's draft (MDPO, arXiv 2508.13148): its tokens at every position masked in x_t.

    log pi = sum over positions l masked in x_t of log pi(draft_l | x_t)

The draft is what the sampler drew at all masked positions, of which it committed some: the model's x_0 prediction.
"""

from __future__ import annotations

import dataclasses

from tensordict import TensorDictBase

from dlmrl_kit.core.keys import SELECTED_STEP, STEP_DRAFT_IDS
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments, counted_positions
from dlmrl_kit.samplers.base import Sampler


@register(
    "likelihood",
    paper="arXiv 2508.13148",
    unbiased=False,
    under="scores tokens that were drawn and not committed as if they were the action",
)
class DraftLogProb(SegmentLikelihood):
    """Scores all tokens of the draft of each selected step given x_t, one forward per step.

    Args:
        sampling_temperature: as ``SegmentLikelihood``.
        after_eos: whether positions behind the draft's first end of text are scored too.

    Reads as ``SegmentLikelihood``, and ``("step", "draft_ids")``; writes as it does.
    """

    def __init__(self, sampling_temperature: bool = True, after_eos: bool = False) -> None:
        super().__init__(sampling_temperature, after_eos)
        self.in_keys = [*self.in_keys, STEP_DRAFT_IDS]

    def segments(self, tensordict: TensorDictBase, policy: Policy, sampler: Sampler) -> Segments:
        """Returns the used segments, with the tokens of the draft."""
        segments = super().segments(tensordict, policy, sampler)
        drafts = gather_steps(tensordict[STEP_DRAFT_IDS], tensordict[SELECTED_STEP])
        tokens = drafts[segments.used].long()
        counted = counted_positions(tokens, policy, self.after_eos)
        return dataclasses.replace(segments, tokens=tokens, counted=counted)

    def masks(self, segments: Segments) -> Copies:
        """Makes one copy: x_t, scored wherever it is masked."""
        masked = segments.masked[:, None]
        return Copies(masked, masked & segments.counted[:, None])
