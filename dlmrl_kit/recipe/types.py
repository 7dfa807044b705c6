"""Whether a bound value fits a constructor's annotation.

Only what is certain is refused: an annotation that cannot be evaluated, or that means something this module does not
know, accepts every value.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Set
from functools import cache
from typing import Any, Protocol

from dlmrl_kit.core.signatures import constructor_of
from dlmrl_kit.recipe.source import Ref

_SIMPLE: dict[object, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    bool: (bool,),
    str: (str,),
    bytes: (bytes,),
}
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class Classes(Protocol):
    """What the check of types must know of components."""

    def class_of(self, gin_name: str) -> type:
        """Returns the class that a reference names."""

    def is_component_class(self, cls: type) -> bool:
        """Tells whether some component is a subclass of ``cls``."""


@cache
def hints(cls: type) -> dict[str, object]:
    """Evaluates the annotations of a constructor's parameters, and leaves out those that cannot be evaluated.

    A parameter that the constructor takes over from a base class (``core.signatures.with_parameters_of``) has the
    annotation that it has there.
    """
    annotated = {p.name for p in constructor_of(cls).parameters.values() if p.annotation is not p.empty}
    found: dict[str, object] = {}
    for owner in reversed(inspect.getmro(cls)):
        constructor = inspect.unwrap(owner.__init__)  # type: ignore[misc]
        if isinstance(constructor, types.FunctionType):
            # What cannot be evaluated here is not what a base class calls by the same name.
            others = {name: hint for name, hint in found.items() if name not in constructor.__annotations__}
            found = others | _evaluated(constructor, annotated)
    return found


def _evaluated(constructor: types.FunctionType, names: Set[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, annotation in constructor.__annotations__.items():
        if name not in names:
            continue

        # One by one: a name imported only for type checkers must not switch off the check of the other parameters.
        def probe() -> None: ...

        probe.__annotations__ = {name: annotation}
        try:
            found.update(typing.get_type_hints(probe, globalns=constructor.__globals__))
        except Exception:  # an annotation is arbitrary code, and this check is a service
            continue
    return found


def described(annotation: str, hint: object) -> str:
    """Returns an annotation as a message shows it: an alias of a type is spelled out as ``hint``, its meaning."""
    alias = annotation.isidentifier() and hint is not None and not inspect.isclass(hint)
    return inspect.formatannotation(hint) if alias else annotation


def fits(value: object, hint: object, classes: Classes) -> bool:
    """Tells whether ``value`` (a literal, a ``Ref``, or containers of them) may be passed where ``hint`` is annotated.

    An int fits float; a bool fits only bool; a list is no tuple. References fit where no basic type is annotated.
    """
    if hint is Any:
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg, classes) for arg in args)
    if origin is typing.Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if isinstance(hint, type) and hint in _SIMPLE:
        return type(value) in _SIMPLE[hint]
    base = origin or hint
    if base in (list, tuple, *_SEQUENCES):
        return _fits_sequence(value, base, args, classes)
    if base in _MAPPINGS:
        return type(value) is dict and (
            not args or all(fits(k, args[0], classes) and fits(v, args[1], classes) for k, v in value.items())
        )
    if inspect.isclass(base):
        return _fits_class(value, base, classes)
    return True


def _fits_sequence(value: object, base: object, args: tuple[object, ...], classes: Classes) -> bool:
    if not isinstance(value, (list, tuple)) or (base not in _SEQUENCES and type(value) is not base):
        return False
    if base is tuple and args and args[-1] is not Ellipsis:
        if args == ((),):  # how Python 3.10 spells tuple[()]
            return not value
        return len(value) == len(args) and all(fits(v, arg, classes) for v, arg in zip(value, args, strict=True))
    return not args or all(fits(item, args[0], classes) for item in value)


def _fits_class(value: object, cls: type, classes: Classes) -> bool:
    if cls in (object, type, collections.abc.Callable) or Protocol in cls.__bases__:
        return True
    if not isinstance(value, Ref):
        return not classes.is_component_class(cls)
    try:
        return issubclass(classes.class_of(value.name), cls)
    except TypeError:
        return True
