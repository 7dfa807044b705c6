"""Schedules s(f) of a fraction f in [0, 1].

Constant schedule: s(f) = value
Linear schedule: s(f) = start + (end - start) * f
Cosine schedule: s(f) = end + (start - end) * (1 + cos(pi f)) / 2, flat at both ends (as arXiv 1608.03983)
Exponential schedule: s(f) = start + (end - start) * (e^(rate f) - 1) / (e^rate - 1)
Polynomial schedule: s(f) = end + (start - end) * (1 - f)^power
"""

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
    """Gives the same value at every step.

    Args:
        value: a finite number.

    Raises:
        ValueError: a value that is not finite.
    """

    value: float

    def __post_init__(self) -> None:
        check(math.isfinite(self.value), self, "value", self.value, "finite")

    def __call__(self, fraction: Tensor) -> Tensor:
        """Returns ``value`` everywhere."""
        return torch.full_like(fraction, self.value)


@register("schedule")
@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line over the steps of a row.

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
        """Returns values from ``start`` at 0 to ``end`` at 1."""
        return self.start * (1 - fraction) + self.end * fraction


@register("schedule", paper="arXiv 1608.03983")
@dataclass(frozen=True)
class Cosine(Schedule):
    """Goes from ``start`` to ``end`` along half a cosine wave, flat at both ends.

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
        """Returns values from ``start`` at 0 to ``end`` at 1."""
        share = (1 + (math.pi * fraction).cos()) / 2
        return self.start * share + self.end * (1 - share)


@register("schedule", paper="arXiv 2512.09675")
@dataclass(frozen=True)
class Exponential(Schedule):
    """An exponential curve from ``start`` to ``end`` over the steps of a row.

    Args:
        start: value at the first step.
        end: value at the last step.
        rate: from -100 to 100, not 0. Positive: slow first, then fast; negative: the reverse; near 0: almost linear.

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
        """Returns values from ``start`` at 0 to ``end`` at 1."""
        return self.start + (self.end - self.start) * (self.rate * fraction).expm1() / math.expm1(self.rate)


@register("schedule", paper="arXiv 2512.09675")
@dataclass(frozen=True)
class Polynomial(Schedule):
    """Polynomial decay from ``start`` to ``end`` over the steps of a row.

    Args:
        start: value at the first step.
        end: value at the last step.
        power: positive; below 1 most of the change comes late, above 1 early, at 1 it is a straight line.

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
        """Returns values from ``start`` at 0 to ``end`` at 1."""
        return self.end + (self.start - self.end) * (1 - fraction) ** self.power
