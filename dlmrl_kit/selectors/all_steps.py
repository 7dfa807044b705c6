"""All steps: the full policy gradient, sum_{t < n} g_t; the reference the other selectors are measured against."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.selectors.base import Selector


@register("selector", unbiased=True)
class AllSteps(Selector):
    """Keeps every step of every row, with weight 1.

    Reads ``("step", "valid")`` bool [B, T].
    Writes ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K], K = steps of the longest row.
    """

    def __init__(self) -> None:
        super().__init__()

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        """The steps that happened, bool [B, T]."""
        return tensordict[STEP_VALID]
