"""What one process may send to another that does not trust it: plain data as JSON, which cannot be made to execute.

A pickle runs code when it is read. A worker runs the user's reward function, or a library on what a model wrote, and a
sandbox what the model wrote itself. So nothing is read from them but None, booleans, numbers, texts, bytes, dates and
times, and lists, tuples, sets, dicts and a few others of these. What is no data may stand in it as a reference, which
sender and receiver agree on.
"""

from __future__ import annotations

import binascii
import contextlib
import importlib
import json
import operator
import sys
from collections import deque

TYPE_CHECKING = False  # of typing, whose import takes a sandbox a tenth of its start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    Describe: TypeAlias = Callable[[object], object]
    """Returns what stands in JSON for an object that is no data; raises ``TypeError`` where nothing does."""
    Find: TypeAlias = Callable[[Any], object]
    """Returns the object that such JSON stands for; raises ``ValueError`` where there is none."""


def to_bytes(value: object, describe: Describe | None = None) -> bytes:
    """Encodes data; numbers and texts of subclasses become plain ones.

    Args:
        value: the data.
        describe: what becomes of objects in it that are no data; None: they are refused.

    Raises:
        TypeError: something that is no data; the message names its type.
        ValueError: nested too deep, or an integer with too many digits.
    """
    try:
        return json.dumps(_plain(value, describe or _refuse), separators=(",", ":")).encode()
    except RecursionError:
        raise ValueError("nested too deep to be sent") from None


def from_bytes(data: bytes, find: Find | None = None) -> Any:
    """Decodes what ``to_bytes`` wrote.

    Args:
        data: the bytes.
        find: what becomes of references to objects that are no data; None: they are refused.

    Raises:
        ValueError: anything else.
    """
    try:
        return _value(json.loads(data), find or _find_nothing)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (TypeError, AttributeError, ArithmeticError) as error:  # an element of another form, or an unhashable one
        raise ValueError(f"no data: {error}") from None


def _plain(value: object, describe: Describe) -> object:
    """Returns a value as JSON: a list is a list; others are objects whose only key is the name of their type."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [_plain(element, describe) for element in value]
    if isinstance(value, dict):
        return {"dict": [[_plain(key, describe), _plain(inner, describe)] for key, inner in value.items()]}
    if isinstance(value, tuple | set | frozenset | deque):
        kind = next(kind for kind in _OF_ELEMENTS.values() if isinstance(value, kind))
        return {kind.__name__: [_plain(element, describe) for element in value]}
    if isinstance(value, bytes | bytearray):
        return {
            "bytes" if isinstance(value, bytes) else "bytearray": binascii.b2a_base64(value, newline=False).decode()
        }
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    with contextlib.suppress(TypeError):  # no whole number
        return operator.index(value)  # type: ignore[arg-type]
    return _rarer(value) or {"object": describe(value)}


def _rarer(value: object) -> object:
    """Returns a value of a type whose module has been imported as JSON, else None; importing them takes time."""
    for module, types in _OF_MODULES.items():
        for name, (to_json, _) in types.items() if module in sys.modules else ():
            if isinstance(value, vars(sys.modules[module])[name]):
                return {name: to_json(value)}
    return None


def _value(plain: Any, find: Find) -> Any:
    if isinstance(plain, list):
        return [_value(element, find) for element in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1:
        raise ValueError("no data: an object without a type")
    ((kind, inner),) = plain.items()
    if kind in ("bytes", "bytearray"):
        decoded: bytes = importlib.import_module("base64").b64decode(inner, validate=True)
        return decoded if kind == "bytes" else bytearray(decoded)
    if kind == "dict":
        return {_value(key, find): _value(element, find) for key, element in inner}
    if kind == "object":
        return find(inner)
    if kind in _OF_ELEMENTS:
        return _OF_ELEMENTS[kind](_value(element, find) for element in inner)
    if kind in ("complex", "range"):
        return (complex if kind == "complex" else range)(*inner)
    for module, types in _OF_MODULES.items():
        if kind in types:
            return types[kind][1](vars(importlib.import_module(module))[kind], inner)
    raise ValueError(f"no data: unknown type {kind[:40]!r}")


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is no data that can be sent")


def _find_nothing(reference: object) -> object:
    raise ValueError("no data: a reference to an object")


_OF_ELEMENTS: dict[str, type[tuple[Any, ...] | set[Any] | frozenset[Any] | deque[Any]]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}


def _to_iso(value: Any) -> str:
    return str(value.isoformat())


def _from_iso(cls: Any, text: str) -> object:
    return cls.fromisoformat(text)


def _from_numbers(cls: Any, numbers: list[Any]) -> object:
    return cls(*numbers)


_OF_MODULES: dict[str, dict[str, tuple[Callable[[Any], object], Callable[[Any, Any], object]]]] = {
    "fractions": {"Fraction": (lambda value: [value.numerator, value.denominator], _from_numbers)},
    "decimal": {"Decimal": (str, lambda cls, text: cls(text))},
    "datetime": {  # a datetime is a date, and so comes first
        "datetime": (_to_iso, _from_iso),
        "date": (_to_iso, _from_iso),
        "time": (_to_iso, _from_iso),
        "timedelta": (lambda value: [value.days, value.seconds, value.microseconds], _from_numbers),
    },
}
"""How values of a module's types become JSON and are made of it again: nothing else is ever called."""
