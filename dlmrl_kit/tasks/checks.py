"""What the parameters of tasks are checked for: weights, seconds, memory, whole numbers."""

from __future__ import annotations

import math

from dlmrl_kit.core.validate import check


def check_reward_weights(component: object, of: tuple[str, ...] = (), **weights: float) -> None:
    """Checks that every weight is finite and at least 0, and one is positive.

    Args:
        component: what is being constructed.
        of: its parameters that hold the weights, where they are not what ``weights`` names.
        weights: by parameter, or by an element of one (``weights[0]``).

    Raises:
        ValueError: they are not.
    """
    for name, weight in weights.items():
        usable = _is_number(weight) and 0 <= weight < math.inf
        check(usable, component, name, weight, "a finite number, at least 0", of=of)
    total = sum(weights.values())
    check(0 < total < math.inf, component, " + ".join(weights), total, "positive and finite", of=of or tuple(weights))


def check_seconds(component: object, parameter: str, value: float) -> None:
    """Raises ``ValueError`` unless ``value`` is a number above 0 and at most 3600."""
    expected = "a number of seconds, above 0 and at most 3600"
    check(_is_number(value) and 0 < value <= 3600, component, parameter, value, expected)


def check_memory(component: object, parameter: str, value: float | None) -> None:
    """Raises ``ValueError`` unless ``value`` is a number of GiB from 0.25 to 65536, or None."""
    expected = "a number of GiB from 0.25 to 65536, or None"
    check(value is None or (_is_number(value) and 0.25 <= value <= 65536), component, parameter, value, expected)


def check_int(component: object, parameter: str, value: int, low: int, high: int | None = None) -> None:
    """Raises ``ValueError`` unless ``value`` is an integer from ``low`` to ``high`` (no upper bound if None)."""
    expected = f"an integer, at least {low}" if high is None else f"an integer from {low} to {high}"
    integer = isinstance(value, int) and not isinstance(value, bool)
    check(integer and value >= low and (high is None or value <= high), component, parameter, value, expected)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # a recipe's True is no number
