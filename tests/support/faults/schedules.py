"""Schedules with one mistake each."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.schedules.base import Schedule


class FlatSchedule(Schedule):
    """Forgets the shape."""

    def __call__(self, fraction: Tensor) -> Tensor:
        return fraction.mean()


class ChangesFraction(Schedule):
    """Works in place."""

    def __call__(self, fraction: Tensor) -> Tensor:
        return fraction.mul_(0.5)


class LosesItsValue(Schedule):
    """Is another after it was copied."""

    def __init__(self) -> None:
        self.value = 1.0

    def __getstate__(self) -> dict[str, float]:
        return {"value": self.value + 1}

    def __call__(self, fraction: Tensor) -> Tensor:
        return torch.full_like(fraction, self.value)
