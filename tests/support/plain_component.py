"""A component that reads and writes what it says, and a batch for it."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from dlmrl_kit.advantages.base import Advantage


class Base(Advantage):
    """An advantage that reads and writes two keys, rightly."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = ["reward"]
        self.out_keys = ["advantage"]

    def forward(self, tensordict: TensorDict) -> Any:
        return tensordict.set("advantage", tensordict["reward"] * 2)


def batch() -> TensorDict:
    step = {"valid": torch.ones(2, 3, dtype=torch.bool)}
    return TensorDict({"reward": torch.ones(2), "group": torch.zeros(2), "step": step}, [2])
