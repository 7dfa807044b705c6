"""The interface of reward functions: each gives a completion one named number, which a task weights and adds up.

The formula of a reward stands in a pure function; the component holds its settings, its weight and its name.
"""

from __future__ import annotations

import math
import numbers
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.promises import promises, shown
from dlmrl_kit.core.validate import check, clipped

RESERVED = frozenset({"reward", "solved", "failed"})
"""Names that every task's scores have already."""


def value_fault(value: object) -> str:
    """Says what is wrong with what should be a finite number, as the end of a sentence; "" if nothing is."""
    finite = isinstance(value, numbers.Real) and math.isfinite(value)
    return "" if finite else f"{clipped(shown(value))}; it should be a finite number"


def values_fault(values: object, count: int) -> str:
    """Says what is wrong with what should be ``count`` finite numbers, as ``value_fault``."""
    if not isinstance(values, list | tuple) or len(values) != count:
        got = f"{len(values)} values" if isinstance(values, list | tuple) else shown(values)
        return f"{got} for {count} completions; it should be a list with a number for each"
    return next(filter(None, map(value_fault, values)), "")


class RewardFunction(Dependent, ABC):
    """Base class of reward functions.

    Args:
        weight: what the value is multiplied by in the task's reward; any finite number. The value is logged without it.
        name: of the value in metrics (``reward/NAME``); "": the class name in small letters, ``correct_answer``.

    Raises:
        ValueError: a weight that is not finite, or a name that is taken or cannot be written in a table.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """The entries of an example's ``meta`` that it reads."""
    decides: ClassVar[bool] = False
    """Whether the value 1 means that a completion solves its example: the accuracy is then counted by it."""
    reported: ClassVar[str] = ""
    """What tables of results call the mean of the value, which they then show beside the accuracy; "": they do not."""

    def __init__(self, weight: float = 1.0, name: str = "") -> None:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        check(number, self, "weight", weight, "a finite number")
        usable = isinstance(name, str) and len(name) <= 64 and name.isprintable() and name not in RESERVED
        check(usable, self, "name", name, f"a short text other than {', '.join(sorted(RESERVED))}")
        self.weight = weight
        self.name = name

    @property
    def label(self) -> str:
        """What the value is called in metrics."""
        return self.name or re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @abstractmethod
    @promises(lambda result, given: value_fault(result))
    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns what a completion earns, a finite number.

        Never raises and takes bounded time, whatever ``text`` is.

        Args:
            text: the whole answer: what the prompt gave the policy to begin with (``Example.prefix``), then the
                completion.
            meta: of the example.
        """

    @promises(lambda result, given: values_fault(result, len(given["texts"])))
    def values(self, texts: Sequence[str], metas: Sequence[Mapping[str, Any]]) -> list[float]:
        """Returns what several completions earn; arguments as ``value``. Default: one call of ``value`` each."""
        return [self.value(text, meta) for text, meta in zip(texts, metas, strict=True)]

    def require(self) -> None:
        """Checks, before anything is scored, that what the function needs is on this machine. Default: it is.

        Raises:
            UserError: a package or a program is missing; says how to install it.
        """
