"""Whether a bound value fits a constructor's annotation.

Only what is certain is refused: an annotation that cannot be evaluated, or that means something this module does not
know, accepts every value.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from functools import cache
from typing import Any, Protocol

from dlmrl_kit.recipe.source import Ref

_SIMPLE: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    bool: (bool,),
    str: (str,),
    bytes: (bytes,),
}
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class Classes(Protocol):
    """What the check must know of components."""

    def class_of(self, gin_name: str) -> type:
        """The class a reference names."""

    def is_component_class(self, cls: type) -> bool:
        """Whether some component is a subclass of ``cls``."""


@cache
def hints(cls: type) -> dict[str, Any]:
    """Evaluated annotations of the constructor's parameters, without those that cannot be evaluated."""
    constructor = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    annotations = getattr(constructor, "__annotations__", {})
    found = {}
    for name, annotation in annotations.items():
        # One by one: a name imported only for type checkers must not switch off the check of the other parameters.
        def probe() -> None: ...

        probe.__annotations__ = {name: annotation}
        try:
            found.update(typing.get_type_hints(probe, globalns=getattr(constructor, "__globals__", {})))
        except Exception:  # an annotation is arbitrary code, and this check is a service
            continue
    return found


def fits(value: Any, hint: Any, classes: Classes) -> bool:
    """Whether ``value`` (a literal, a ``Ref``, or containers of them) may be passed where ``hint`` is annotated.

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


def _fits_sequence(value: Any, base: Any, args: tuple[Any, ...], classes: Classes) -> bool:
    if type(value) not in ((list, tuple) if base in _SEQUENCES else (base,)):
        return False
    if base is tuple and args and args[-1] is not Ellipsis:
        if args == ((),):  # how Python 3.10 spells tuple[()]
            return not value
        return len(value) == len(args) and all(fits(v, arg, classes) for v, arg in zip(value, args, strict=True))
    return not args or all(fits(item, args[0], classes) for item in value)


def _fits_class(value: Any, cls: type, classes: Classes) -> bool:
    if cls in (object, type, collections.abc.Callable) or getattr(cls, "_is_protocol", False):
        return True
    if not isinstance(value, Ref):
        return not classes.is_component_class(cls)
    try:
        return issubclass(classes.class_of(value.name), cls)
    except TypeError:
        return True
