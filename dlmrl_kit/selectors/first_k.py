"""First k: the steps 0 .. k - 1, where most of the completion is still masked (an ablation of arXiv 2603.12554)."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Selector


@register("selector", unbiased=False, under="drops the later steps")
class FirstK(Selector):
    """Keeps the first k steps of each row, with weight 1.

    Args:
        k: steps per row; a row with fewer keeps them all.

    Reads ``("step", "valid")`` bool [B, T].
    Writes ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K], K = min(k, T).

    Raises:
        ValueError: a value out of range.
    """

    nested = True

    def __init__(self, k: int = 8) -> None:
        super().__init__()
        check(isinstance(k, int) and k >= 1, self, "k", k, "an integer, at least 1")
        self.k = self.slots = k

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        """Steps before k, bool [B, T]."""
        valid = tensordict[STEP_VALID]
        return (torch.arange(valid.shape[-1], device=valid.device) < self.k) & valid
