"""Shrunk trajectory (TraceRL, arXiv 2509.06949): every s consecutive steps become one segment.

    segment j:  the steps from j s up to, not including, min((j + 1) s, n)

for a row of n steps.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import num_valid
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Selector


@register(
    "selector",
    paper="arXiv 2509.06949",
    unbiased=False,
    under="segments of several steps: a step likelihood scores the first only, segment likelihoods are approximate",
)
class ShrunkSteps(Selector):
    """Cuts the steps of a row into segments of ``shrink`` steps; the last one may be shorter.

    Nothing is left out: the gradient is as good as the likelihood's estimate of a segment.

    Args:
        shrink: s, steps per segment, at least 1; 1 is ``AllSteps``.

    Reads ``("step", "valid")``. Writes as ``Selector``; an entry is the first step of its segment.

    Raises:
        ValueError: a value out of range.
    """

    nested = True
    segments = True

    def __init__(self, shrink: int = 2) -> None:
        super().__init__()
        check(shrink >= 1, self, "shrink", shrink, "at least 1")
        self.shrink = shrink

    def resized(self, before: Sizes, after: Sizes) -> ShrunkSteps:
        """Makes segments of the same share of the steps; of two steps at least, where they had several."""
        return rebuilt(self, shrink=max(before.scale_steps(self.shrink, after), min(self.shrink, 2)))

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps every ``shrink``-th step."""
        valid = tensordict[STEP_VALID]
        return valid & (torch.arange(valid.shape[1], device=valid.device) % self.shrink == 0)

    def ends(self, tensordict: TensorDictBase, step: Tensor) -> Tensor:
        """Returns the next multiple of ``shrink``, or the number of steps."""
        return torch.minimum(step + self.shrink, num_valid(tensordict)[:, None].expand_as(step))
