"""Which component adds what to the bias of a recipe: alone among exact ones, taken away, and two of them together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dlmrl_kit.audit.measure import Measured
from dlmrl_kit.audit.scale import TOLERANCE, matching
from dlmrl_kit.audit.variants import Cause

MORE_TOGETHER = 1.5
"""Causes interact where their bias together is more than this times the sum of what each has alone ..."""
LEAST = 0.01
"""... and by at least so much."""

Json: TypeAlias = dict[str, object]


@dataclass(frozen=True)
class Spread:
    """A number over the problems where it is defined."""

    mean: float | None
    min: float | None
    max: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Of the values that are numbers."""
        numbers = [value for value in values if value is not None]
        if not numbers:
            return cls(None, None, None)
        return cls(math.fsum(numbers) / len(numbers), min(numbers), max(numbers))

    def to_json(self) -> dict[str, float | None]:
        """As a dictionary."""
        return {"mean": self.mean, "min": self.min, "max": self.max}


@dataclass(frozen=True)
class Attribution:
    """A cause and its bias: of the recipe without it, and of it alone among exact components.

    A number is None where the components do not fit together (``note`` says so). ``..._after_scale``: with the fitted
    scale divided out.
    """

    slot: str
    component: str
    cause: str
    alone: Spread
    alone_after_scale: Spread
    scale_alone: Spread
    without: Spread
    without_after_scale: Spread
    note: str = ""

    def to_json(self) -> Json:
        """As a dictionary; spreads as theirs."""
        return {k: v.to_json() if isinstance(v, Spread) else v for k, v in vars(self).items()}


@dataclass(frozen=True)
class Interaction:
    """Two causes whose bias together is more than the sum of what each has alone; relative, with scales divided out."""

    first: str
    second: str
    alone: tuple[float, float]
    together: float

    @property
    def sentence(self) -> str:
        """In words, with the three numbers."""
        a, b = (_text(value) for value in self.alone)
        return (
            f"{self.first} and {self.second} interact: after the best scale {a} and {b} alone, "
            f"{_text(self.together)} together"
        )

    def to_json(self) -> Json:
        """As a dictionary."""
        return {"components": [self.first, self.second], "alone": list(self.alone), "together": self.together}


def attribution(
    cause: Cause, alone: Sequence[Measured | None], without: Sequence[Measured | None], known: dict[str, float]
) -> Attribution:
    """A cause as it was measured on several problems.

    Args:
        cause: which.
        alone, without: of it alone and of the recipe without it, on each problem; None where that does not fit.
        known: factors by which components are known to scale the gradient.
    """
    only = [m for m in alone if m is not None]
    rest = [m for m in without if m is not None]
    missing = [text for text, have in (("alone", only), ("without it", rest)) if not have]
    return Attribution(
        cause.slot,
        cause.component,
        _words(cause, only, known),
        Spread.of(m.relative_bias for m in only),
        Spread.of(m.relative_bias_after_scale for m in only),
        Spread.of(m.scale for m in only),
        Spread.of(m.relative_bias for m in rest),
        Spread.of(m.relative_bias_after_scale for m in rest),
        f"not measured {' and '.join(missing)}: the exact components do not write what it reads" if missing else "",
    )


def _words(cause: Cause, alone: Sequence[Measured], known: dict[str, float]) -> str:
    bias, scale = Spread.of(m.relative_bias for m in alone), Spread.of(m.scale for m in alone)
    if bias.max is None or any(m.interval is not None for m in alone):
        return cause.words
    if bias.max < TOLERANCE:
        return "none: exact here"
    after = Spread.of(m.relative_bias_after_scale for m in alone).max or 0.0
    if after < TOLERANCE and scale.mean is not None and scale.mean > 0:
        text = matching(scale.mean, known)
        return f"scales the gradient by {scale.mean:.6g}" + (f" = {text}" if text else "")
    return cause.words


def interaction(
    whole: Sequence[Measured],
    listed: Sequence[Cause],
    found: Sequence[Attribution],
    together: Callable[[int, int], list[Measured | None]],
) -> Interaction | None:
    """The two causes that are most beyond the sum of what each is alone; None where the parts explain the whole.

    Args:
        whole: the recipe on each problem; nothing is said where that was sampled, for its noise.
        listed: the causes.
        found: what each is alone.
        together: measures two causes, by their numbers, among exact components.
    """
    total = Spread.of(m.relative_bias_after_scale for m in whole).mean
    alone = [cause.alone_after_scale.mean for cause in found]
    if total is None or any(m.interval is not None for m in whole):
        return None
    if not _more(total, math.fsum(value for value in alone if value is not None)):
        return None
    best: Interaction | None = None
    for i, j in itertools.combinations(range(len(listed)), 2):
        a, b = alone[i], alone[j]
        if a is None or b is None or not _separate(listed[i], listed[j]):
            continue
        both = Spread.of(m.relative_bias_after_scale for m in together(i, j) if m is not None).mean
        if both is not None and _more(both, a + b) and (best is None or both - a - b > best.together - sum(best.alone)):
            best = Interaction(listed[i].component, listed[j].component, (a, b), both)
    return best


def _more(together: float, parts: float) -> bool:
    return together > MORE_TOGETHER * parts and together - parts > LEAST


def _separate(a: Cause, b: Cause) -> bool:
    """Whether two causes can be had alone together: both can, and they are in different slots."""
    return a.only is not None and b.only is not None and not {*a.only} & {*b.only}


def _text(value: float) -> str:
    return "< 1e-8" if value < TOLERANCE else f"{value:.2g}"
