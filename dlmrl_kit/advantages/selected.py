"""Connects an advantage of every step, which selectors may read, with what reads the advantages of the chosen steps."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import SELECTED_ADVANTAGE, SELECTED_STEP, SELECTED_WEIGHT, STEP_ADVANTAGE
from dlmrl_kit.core.trajectory import gather_steps


class SelectedAdvantage(Component):
    """Copies the advantages of the chosen steps from those of all steps.

    The dataflow check adds it behind an advantage that writes the advantage of every step.

    Reads ``("step", "advantage")`` [B, T], ``("selected", "step")`` int64 [B, K] and ``("selected", "weight")`` [B, K].
    Writes ``("selected", "advantage")`` [B, K], 0 where the weight is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [STEP_ADVANTAGE, SELECTED_STEP, SELECTED_WEIGHT]
        self.out_keys = [SELECTED_ADVANTAGE]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the advantages of the chosen steps."""
        advantage = gather_steps(tensordict[STEP_ADVANTAGE], tensordict[SELECTED_STEP])
        return tensordict.set(SELECTED_ADVANTAGE, torch.where(tensordict[SELECTED_WEIGHT] > 0, advantage, 0.0))
