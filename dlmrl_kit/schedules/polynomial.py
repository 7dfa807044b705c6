"""Polynomial schedule: s(f) = end + (start - end) * (1 - f)^power."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.schedules.base import Schedule


@register("schedule", paper="arXiv 2512.09675")
@dataclass(frozen=True)
class Polynomial(Schedule):
    """Polynomial decay; a power below 1 decays late, one above 1 early.

    Args:
        start: value at the first step.
        end: value at the last step.
        power: positive; 1 is a straight line.

    Raises:
        ValueError: a value out of range.
    """

    start: float
    end: float
    power: float = 1.0

    def __post_init__(self) -> None:
        check(math.isfinite(self.start), self, "start", self.start, "finite")
        check(math.isfinite(self.end), self, "end", self.end, "finite")
        check(0 < self.power < math.inf, self, "power", self.power, "positive and finite")

    def __call__(self, fraction: Tensor) -> Tensor:
        """From ``start`` at 0 to ``end`` at 1."""
        return self.end + (self.start - self.end) * (1 - fraction) ** self.power
