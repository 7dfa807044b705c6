"""Checks of constructor parameters; imports no torch, so that modules that must load fast can use it."""

from __future__ import annotations

from typing import NoReturn

from dlmrl_kit.core.errors import ParameterError

SHOWN = 80
"""Characters of a value that a message shows."""


def clipped(text: str, limit: int = SHOWN) -> str:
    """Returns a text for a message, cut at ``limit`` characters: a value may be as long as its file."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check(
    condition: bool, component: object, parameter: str, value: object, expected: str, *, of: tuple[str, ...] = ()
) -> None:
    """Refuses the value of a constructor's parameter unless ``condition`` holds.

    Args:
        condition: whether the value is valid.
        component: what is being constructed.
        parameter: name of the parameter, or an expression such as ``tasks[0]`` or ``low + high``.
        value: of the parameter or expression.
        expected: what would be valid, to follow "must be".
        of: the parameters of an expression, so that an error in a recipe can name the line that sets one of them.

    Raises:
        ParameterError: ``condition`` is False; a ``ValueError`` that says what was given and what was expected.
    """
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
