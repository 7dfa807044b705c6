"""A number that changes at one point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from dlmrl_kit import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.schedules.base import Schedule
from torch import Tensor


@register("schedule")
@dataclass(frozen=True)
class AcmeSchedule(Schedule):
    """Is ``start`` before a fraction of the steps of a row, and ``end`` from there on.

    Args:
        start: value at the first steps.
        end: value at the last steps.
        at: the fraction, in [0, 1].

    Raises:
        ValueError: a value out of range.
    """

    start: float = 1.0
    end: float = 0.0
    at: float = 0.5

    def __post_init__(self) -> None:
        check(math.isfinite(self.start), self, "start", self.start, "finite")
        check(math.isfinite(self.end), self, "end", self.end, "finite")
        check(0 <= self.at <= 1, self, "at", self.at, "in [0, 1]")

    def __call__(self, fraction: Tensor) -> Tensor:
        """Returns the value at each fraction of the way, [B, T] from 0 to 1."""
        return torch.where(fraction < self.at, self.start, self.end).to(fraction.dtype)
