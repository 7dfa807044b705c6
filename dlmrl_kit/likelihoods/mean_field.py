r"""Mean-field log-probability (d1, arXiv 2504.12216): every token from the fully masked completion, in one forward.

    log pi(o | q) ~ sum_l log pi(o_l | mask(q), all masked)

Tokens that are committed together are independent given the state; scored from the fully masked completion, all are.
"""

from __future__ import annotations

import torch

from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.segments import Copies, OneCopyLikelihood, Segments


@register("likelihood", paper="arXiv 2504.12216", unbiased=False, under="exact only for completions of one step")
class MeanField(OneCopyLikelihood):
    """Scores the tokens of each segment given the prompt alone; prompt tokens may be masked at random.

    Arguments, reads, writes, raises as ``OneCopyLikelihood``.
    """

    def masks(self, segments: Segments) -> Copies:
        """Makes one copy, masked everywhere."""
        targets = segments.targets[:, None]
        return Copies(torch.ones_like(targets), targets, self.prompt_masks(segments))
