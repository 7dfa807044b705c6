"""Checks of constructor parameters; imports no torch, so that cheap modules can use it."""

from __future__ import annotations

from typing import NoReturn

from dlmrl_kit.core.errors import ParameterError


def check(
    condition: bool, component: object, parameter: str, value: object, expected: str, *, of: tuple[str, ...] = ()
) -> None:
    """Refuses the value of a constructor's parameter unless ``condition`` holds.

    Args:
        condition: whether the value will do.
        component: what is being constructed.
        parameter: its parameter, or an expression such as ``tasks[0]`` or ``low + high``.
        value: what the parameter or expression is.
        expected: what would be right, to follow "must be".
        of: the parameters of an expression, so that a recipe's error names the line that binds one.

    Raises:
        ParameterError: a ``ValueError`` that names component, parameter, value and what was expected.
    """
    if not condition:
        refuse_value(component, parameter, f"must be {expected}, got {value!r}", of=of)


def refuse_value(
    component: object, parameter: str, reason: str, *, of: tuple[str, ...] = (), joint: str = " "
) -> NoReturn:
    """Refuses the value of a constructor's parameter.

    Args:
        component, parameter, of: as ``check``.
        reason: what is wrong.
        joint: what stands between parameter and reason in the message.

    Raises:
        ParameterError: always.
    """
    raise ParameterError(type(component).__name__, parameter, reason, of, joint)
