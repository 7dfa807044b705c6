"""Top absolute advantage (MDPO, arXiv 2508.13148): the k steps of a row with the largest |A_t|.

The released code ranks steps by the sum of |A_t| over its local batch, which holds one sample. Ranked for each sample
by itself, how a rollout is cut into batches changes no selection, and rows of different length need no common steps.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_ADVANTAGE, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Selector, descending_rank


@register("selector", paper="arXiv 2508.13148", unbiased=False, under="drops the steps of small advantage")
class TopAbsoluteAdvantage(Selector):
    """Keeps the k steps whose advantage is farthest from 0, with weight 1; ties go to the earlier step.

    Needs an advantage that is known before steps are chosen, such as ``IntermediateReward``.

    Args:
        k: steps per row; a row with fewer keeps them all.

    Reads ``("step", "valid")`` bool [B, T], ``("step", "advantage")`` [B, T].
    Writes ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K], K = min(k, T).

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, k: int = 8) -> None:
        super().__init__(STEP_ADVANTAGE)
        check(isinstance(k, int) and k >= 1, self, "k", k, "an integer, at least 1")
        self.k = self.slots = k

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        """The k steps that rank first, bool [B, T]."""
        valid = tensordict[STEP_VALID]
        return (descending_rank(tensordict[STEP_ADVANTAGE].abs(), valid) < self.k) & valid
