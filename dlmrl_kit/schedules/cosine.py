"""Cosine schedule: s(f) = end + (start - end) * (1 + cos(pi f)) / 2, flat at both ends (as arXiv 1608.03983)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.schedules.base import Schedule


@register("schedule", paper="arXiv 1608.03983")
@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave over the steps of a row.

    Args:
        start: value at the first step.
        end: value at the last step.

    Raises:
        ValueError: a value that is not finite.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        check(math.isfinite(self.start), self, "start", self.start, "finite")
        check(math.isfinite(self.end), self, "end", self.end, "finite")

    def __call__(self, fraction: Tensor) -> Tensor:
        """From ``start`` at 0 to ``end`` at 1."""
        share = (1 + (math.pi * fraction).cos()) / 2
        return self.start * share + self.end * (1 - share)
