"""Last k: the steps n - k .. n - 1, where little is still masked (an ablation of arXiv 2603.12554)."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Selector


@register("selector", unbiased=False, under="drops the earlier steps")
class LastK(Selector):
    """Keeps the last k steps of each row, with weight 1.

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
        """Steps from n - k on, bool [B, T]."""
        valid = tensordict[STEP_VALID]
        first = valid.sum(-1, keepdim=True) - self.k
        return (torch.arange(valid.shape[-1], device=valid.device) >= first) & valid
