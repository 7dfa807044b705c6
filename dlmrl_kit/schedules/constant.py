"""Constant schedule: s(f) = value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.schedules.base import Schedule


@register("schedule")
@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step.

    Args:
        value: a finite number.

    Raises:
        ValueError: a value that is not finite.
    """

    value: float

    def __post_init__(self) -> None:
        check(math.isfinite(self.value), self, "value", self.value, "finite")

    def __call__(self, fraction: Tensor) -> Tensor:
        """``value`` everywhere."""
        return torch.full_like(fraction, self.value)
