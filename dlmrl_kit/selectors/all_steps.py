"""All steps: the full policy gradient, sum_{t < n} g_t, which the other selectors approximate."""

from __future__ import annotations

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

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the steps that happened: bool [B, T]."""
        return tensordict[STEP_VALID]
