"""Exponential schedule: s(f) = start + (end - start) * (e^(rate f) - 1) / (e^rate - 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.schedules.base import Schedule


@register("schedule", paper="arXiv 2512.09675")
@dataclass(frozen=True)
class Exponential(Schedule):
    """From ``start`` to ``end``, ever faster where ``rate`` is positive.

    Args:
        start: value at the first step.
        end: value at the last step.
        rate: not 0, at most 100 in size; small is almost linear.

    Raises:
        ValueError: a value out of range.
    """

    start: float
    end: float
    rate: float = 2.0

    def __post_init__(self) -> None:
        check(math.isfinite(self.start), self, "start", self.start, "finite")
        check(math.isfinite(self.end), self, "end", self.end, "finite")
        check(0 < abs(self.rate) <= 100, self, "rate", self.rate, "not 0, from -100 to 100")

    def __call__(self, fraction: Tensor) -> Tensor:
        """From ``start`` at 0 to ``end`` at 1."""
        return self.start + (self.end - self.start) * (self.rate * fraction).expm1() / math.expm1(self.rate)
