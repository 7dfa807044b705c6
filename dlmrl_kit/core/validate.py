"""Checks of constructor parameters; imports no torch, so that modules that must load fast can use it."""

from __future__ import annotations

import math
from typing import ClassVar, NoReturn

from dlmrl_kit.core.errors import ParameterError

SHOWN = 80
"""Characters of a value that a message shows."""


def clipped(text: str, limit: int = SHOWN) -> str:
    """Returns a text for a message, cut at ``limit`` characters: a value may be as long as its file."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_finite(value: object) -> bool:
    """Tells whether no number in a value, or in the lists, tuples and dictionaries in it, is NaN or infinite.

    An integer that is too large for a float counts as infinite.
    """
    if isinstance(value, (int, float)):
        try:
            return math.isfinite(value)
        except OverflowError:
            return False
    if isinstance(value, dict):
        return all(is_finite(item) for pair in value.items() for item in pair)
    return not isinstance(value, (list, tuple)) or all(is_finite(item) for item in value)


class Unlimited:
    """Base class of components of which some real settings may be infinite, which means that there is no limit."""

    unlimited: ClassVar[tuple[str, ...]] = ()
    """Names of these settings; all others of any component must be finite."""


def is_allowed(component: type, parameter: str, value: object) -> bool:
    """Tells whether a setting of a class of components is finite, or may be infinite."""
    return is_finite(value) or (issubclass(component, Unlimited) and parameter in component.unlimited)


def check(
    condition: bool, component: object, parameter: str, value: object, expected: str, *, of: tuple[str, ...] = ()
) -> None:
    """Refuses the value of a constructor's parameter unless ``condition`` holds and it is finite (or ``Unlimited``).

    Args:
        condition: whether the value is valid.
        component: what is being constructed.
        parameter: name of the parameter, or an expression such as ``tasks[0]`` or ``low + high``.
        value: of the parameter or expression.
        expected: what would be valid, to follow "must be".
        of: the parameters of an expression, so that an error in a recipe can name the line that sets one of them.

    Raises:
        ParameterError: ``condition`` is False, or a number in ``value`` is not finite; a ``ValueError`` that says what
            was given and what was expected.
    """
    if condition and not is_allowed(type(component), parameter, value):
        condition, expected = False, expected if "finite" in expected else f"{expected} and finite"
    if not condition:
        refuse_value(component, parameter, f"must be {expected}, got {clipped(repr(value))}", of=of)


def refuse_value(
    component: object, parameter: str, reason: str, *, of: tuple[str, ...] = (), joint: str = " "
) -> NoReturn:
    """Refuses the value of a constructor's parameter for a reason given in words.

    Args:
        component, parameter, of: as ``check``.
        reason: what is wrong.
        joint: text between parameter and reason in the message.

    Raises:
        ParameterError: always.
    """
    raise ParameterError(type(component).__name__, parameter, reason, of, joint)
