"""What a worker process may send: plain data as JSON, which whoever reads it cannot be made to execute.

A pickle runs code when it is read. A worker runs the user's reward function, or a library on what a model wrote, so its
parent reads nothing from it but None, booleans, numbers, texts, bytes, dates and times, and lists, tuples, sets and
dicts of these.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import operator
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, SupportsIndex


def to_bytes(value: object) -> bytes:
    """Encodes data; numbers and texts of subclasses become plain ones.

    Raises:
        TypeError: something that is no data; the message names its type.
        ValueError: nested too deep, or an integer with too many digits.
    """
    try:
        return json.dumps(_plain(value), separators=(",", ":")).encode()
    except RecursionError:
        raise ValueError("nested too deep to be sent") from None


def from_bytes(data: bytes) -> Any:
    """Decodes what ``to_bytes`` wrote.

    Raises:
        ValueError: anything else.
    """
    try:
        return _value(json.loads(data))
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (TypeError, AttributeError, ArithmeticError) as error:  # an element of another form, or an unhashable one
        raise ValueError(f"no data: {error}") from None


def _plain(value: object) -> object:
    """Returns a value as JSON: a list is a list; others are objects whose only key is the name of their type."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, SupportsIndex):
        with contextlib.suppress(TypeError):  # a class of numbers, or an array
            return operator.index(value)
    if isinstance(value, list):
        return [_plain(element) for element in value]
    if isinstance(value, dict):
        return {"dict": [[_plain(key), _plain(element)] for key, element in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Fraction):
        return {"fraction": [value.numerator, value.denominator]}
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return {"datetime" if isinstance(value, datetime.datetime) else type(value).__name__: value.isoformat()}
    if isinstance(value, datetime.timedelta):
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [_plain(element) for element in value]}
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is no data that can be sent")


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(element) for element in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1:
        raise ValueError("no data: an object without a type")
    ((kind, inner),) = plain.items()
    if kind == "bytes":
        return base64.b64decode(inner, validate=True)
    if kind == "dict":
        return {_value(key): _value(element) for key, element in inner}
    if kind in _OF_ELEMENTS:
        return _OF_ELEMENTS[kind](_value(element) for element in inner)
    if kind in _OF_NUMBERS:
        return _OF_NUMBERS[kind](*inner)
    if kind in _OF_TEXT:
        return _OF_TEXT[kind](inner)
    raise ValueError(f"no data: unknown type {kind[:40]!r}")


_OF_ELEMENTS: dict[str, Callable[[Iterable[Any]], object]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_OF_NUMBERS: dict[str, Callable[..., object]] = {
    "complex": complex,
    "fraction": Fraction,
    "timedelta": datetime.timedelta,
}
_OF_TEXT: dict[str, Callable[[str], object]] = {
    "decimal": Decimal,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
}
"""What makes a value of its JSON, by the name of its type: nothing else is ever called."""
