"""From the advantage of every step to that of the chosen ones, for advantages that selectors may read."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

from dlmrl_kit.advantages.base import SELECTED, WEIGHT
from dlmrl_kit.core.component import Component, Key
from dlmrl_kit.core.trajectory import gather_steps

STEP_ADVANTAGE: Key = ("step", "advantage")


class SelectedAdvantage(Component):
    """Reads ``("step", "advantage")`` [B, T] and the selection; writes ``("selected", "advantage")`` [B, K].

    The dataflow check adds it behind an advantage that writes the advantage of every step. 0 where the weight is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [STEP_ADVANTAGE, ("selected", "step"), WEIGHT]
        self.out_keys = [SELECTED]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reads the advantages off at the chosen steps."""
        advantage = gather_steps(tensordict[STEP_ADVANTAGE], tensordict["selected", "step"])
        return tensordict.set(SELECTED, torch.where(tensordict[WEIGHT] > 0, advantage, 0.0))
