"""Equal segments (d2-StepMerge, arXiv 2509.21474): the steps of a row are cut into n segments of equal length.

    segment j:  the steps from floor(j s / n) up to, not including, floor((j + 1) s / n),   j = 0 .. n - 1

for a row of s steps.
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
    paper="arXiv 2509.21474",
    unbiased=False,
    under="segments of several steps: a step likelihood scores the first only, segment likelihoods are approximate",
)
class EqualSegments(Selector):
    """Cuts the steps of a row into n segments of equal length; a row of fewer steps has a segment for each.

    Nothing is left out: the gradient is as good as the likelihood's estimate of a segment.

    Args:
        n: number of segments, at least 1. 1 is the whole completion, as many as there are steps is ``AllSteps``.

    Reads ``("step", "valid")``. Writes as ``Selector``; an entry is the first step of its segment.

    Raises:
        ValueError: a value out of range.
    """

    segments = True

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        check(n >= 1, self, "n", n, "at least 1")
        self.n = self.max_selected = n

    def resized(self, before: Sizes, after: Sizes) -> EqualSegments:
        """Cuts the steps into as many segments in proportion; into fewer than there are steps, where that was so."""
        return rebuilt(self, n=before.scale_steps(self.n, after))

    def _bounds(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the first step of each segment, which may be empty, and the number of steps: int64 [B, n + 1]."""
        index = torch.arange(self.n + 1, device=tensordict[STEP_VALID].device)
        return index * num_valid(tensordict)[:, None] // self.n

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the first step of each segment that is not empty."""
        bounds = self._bounds(tensordict)
        valid = tensordict[STEP_VALID]
        starts = torch.zeros(valid.shape[0], valid.shape[1] + 1, dtype=torch.bool, device=valid.device)
        return starts.scatter(1, bounds[:, :-1], True)[:, :-1] & valid

    def ends(self, tensordict: TensorDictBase, step: Tensor) -> Tensor:
        """Returns the start of the next segment that is not empty, or the number of steps."""
        bounds = self._bounds(tensordict)
        later = torch.where(bounds[:, None, :] > step[:, :, None], bounds[:, None, :], tensordict[STEP_VALID].shape[1])
        return later.amin(-1)
