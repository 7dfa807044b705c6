"""Uniform steps: step_j = round(j * (n - 1) / (k - 1)) for j = 0 .. k - 1; a baseline of EGSPO (arXiv 2603.12554)."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Selector


@register("selector", paper="arXiv 2603.12554", unbiased=False, under="drops the steps in between")
class UniformSteps(Selector):
    """Keeps k distinct, evenly spaced steps from the first to the last, with weight 1; k = 1 keeps the middle one.

    Args:
        k: steps per row; a row with fewer keeps them all.

    Reads ``("step", "valid")`` bool [B, T].
    Writes ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K], K = min(k, T).

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, k: int = 8) -> None:
        super().__init__()
        check(isinstance(k, int) and k >= 1, self, "k", k, "an integer, at least 1")
        self.k = self.slots = k

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        """The evenly spaced steps, rounded half up in integers, bool [B, T]."""
        valid = tensordict[STEP_VALID]
        last = valid.sum(-1, keepdim=True) - 1
        gaps = last.clamp(max=self.k - 1)
        j = torch.minimum(torch.arange(valid.shape[-1], device=valid.device), gaps)
        spaced = torch.where(gaps > 0, (2 * j * last + gaps) // (2 * gaps).clamp(min=1), last // 2)
        return torch.zeros_like(valid).scatter(-1, spaced, True)
