r"""Pays an expression of the given numbers that has the target as its value.

The published scorer hands the model's text to ``eval``. Here it is parsed, with exact fractions and bounded size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.tags import before_equals, final_answer, in_answer, last_equation
from dlmrl_kit.scoring import arithmetic

ATTEMPTED = 0.1
"""What an answer earns that is there, but not right."""


def expression_of(text: str, lenient: bool) -> str | None:
    r"""Returns the expression that a text answers with; None where there is none.

    Args:
        text: what a model wrote.
        lenient: whether it may also stand in a ``\boxed{}``, or before the equals sign of the last line that has one,
            and whether a stated value behind the expression is left out. If not, it stands alone in ``<answer>``.
    """
    if not lenient:
        return in_answer(text)
    found = final_answer(text) or last_equation(text)
    if found is None:
        return None
    for written, meant in ((r"\times", "*"), (r"\cdot", "*"), (r"\div", "/"), ("×", "*"), ("÷", "/"), ("−", "-")):
        found = found.replace(written, meant)
    return before_equals(found)


def countdown_value(text: str, numbers: Sequence[int], target: int, lenient: bool = False) -> float:
    """Returns 1 for a right expression, 0.1 for another answer, 0 for none.

    A right one uses each number exactly once and equals the target exactly. Arguments as ``expression_of``, and the
    given numbers and the target.
    """
    expression = expression_of(text, lenient)
    if not expression:
        return 0.0
    right = arithmetic.numbers_in(expression) == sorted(numbers) and arithmetic.value_of(expression) == target
    return 1.0 if right else ATTEMPTED


@register("reward", paper="arXiv 2504.12216; arXiv 2603.12554")
class CountdownValue(RewardFunction):
    r"""1 for an expression of all given numbers that has the target as its value, 0.1 for another answer, 0 for none.

    Args:
        lenient: reads the expression in ``<answer>``, else in ``\boxed{}``, else before the last equals sign, and
            leaves out a value that is stated behind it; if not, it must stand alone in ``<answer>``.

    Other arguments, raises as ``RewardFunction``.
    """

    needs = ("numbers", "target")
    decides = True

    def __init__(self, weight: float = 1.0, name: str = "", lenient: bool = False) -> None:
        super().__init__(weight, name)
        self.lenient = lenient

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns 1, 0.1 or 0."""
        return countdown_value(text, meta["numbers"], meta["target"], self.lenient)
