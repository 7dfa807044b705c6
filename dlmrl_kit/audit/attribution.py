"""Attributes the bias of a recipe to its causes: each alone among exact components, left out, and two together."""

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
"""Two causes interact if their bias together is more than this times the sum of what each has alone ..."""
LEAST = 0.01
"""... and exceeds it by more than this."""

Json: TypeAlias = dict[str, object]


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest value of a number over the problems on which it is defined; None if there are none."""

    mean: float | None
    min: float | None
    max: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Computes the spread of the values that are not None."""
        numbers = [value for value in values if value is not None]
        if not numbers:
            return cls(None, None, None)
        return cls(math.fsum(numbers) / len(numbers), min(numbers), max(numbers))

    def to_json(self) -> dict[str, float | None]:
        """Returns the three numbers for JSON."""
        return {"mean": self.mean, "min": self.min, "max": self.max}


@dataclass(frozen=True)
class Attribution:
    """The bias of one cause, alone among exact components, and that of the recipe without it.

    All are relative biases, spread over the problems; None if the components do not fit together (see ``note``).

    Attributes:
        slot: where the cause is.
        component: what it is called.
        cause: what it does to the gradient, in words.
        alone, without: the cause alone, and the recipe without it.
        alone_after_scale, without_after_scale: the same after the best scale is divided out.
        scale_alone: the best scale of the cause alone.
        note: says what could not be measured; "" if everything could.
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
        """Returns all fields for JSON."""
        return {k: v.to_json() if isinstance(v, Spread) else v for k, v in vars(self).items()}


@dataclass(frozen=True)
class Interaction:
    """Two causes whose bias together is more than the sum of what each has alone.

    Attributes:
        first, second: names of the causes.
        alone, together: relative biases after the best scale, of each cause alone and of both.
    """

    first: str
    second: str
    alone: tuple[float, float]
    together: float

    @property
    def sentence(self) -> str:
        """Says that they interact, with the three numbers."""
        a, b = (_text(value) for value in self.alone)
        return (
            f"{self.first} and {self.second} interact: after the best scale {a} and {b} alone, "
            f"{_text(self.together)} together"
        )

    def to_json(self) -> Json:
        """Returns it for JSON."""
        return {"components": [self.first, self.second], "alone": list(self.alone), "together": self.together}


def attribution(
    cause: Cause, alone: Sequence[Measured | None], without: Sequence[Measured | None], known: dict[str, float]
) -> Attribution:
    """Sums up what was measured of a cause on several problems.

    Args:
        cause: what was measured.
        alone, without: the cause alone, and the recipe without it, on each problem; None where components do not fit.
        known: factors by which components are known to scale the gradient, by their text.
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
    """Finds the two causes whose bias together exceeds the sum of their own biases by most.

    Args:
        whole: the recipe on each problem.
        listed: the causes.
        found: the attribution of each cause.
        together: measures two causes, given by their numbers in ``listed``, among exact components.

    Returns:
        The interaction; None if the causes alone explain the bias of the recipe, or if that was sampled and so noisy.
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
    """Returns whether two causes can be measured together: each can be alone, and they fill different slots."""
    return a.only is not None and b.only is not None and not {*a.only} & {*b.only}


def _text(value: float) -> str:
    return "< 1e-8" if value < TOLERANCE else f"{value:.2g}"
