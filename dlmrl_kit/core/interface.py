"""Holds a plugin's class to the base class of its kind: calls, results, arguments and attributes.

For every public method, property and annotated attribute that the kit's base classes define, and a class from outside
the kit defines again:

- the method can be called as the base class's can (seen when an instance is built),
- what it returns is what ``core.promises`` says of the base class's method, or else what that one's annotation says,
- it changes no tensor that it is given in place, and does not end the program,
- attributes are of the annotated types (seen when an instance is built).
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import typeguard
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.blame import is_foreign, named
from dlmrl_kit.core.component import DECLARATIONS, Component
from dlmrl_kit.core.errors import ComponentError
from dlmrl_kit.core.promises import promise_of, shown

Versions = list[tuple[str, Tensor, int]]
"""Tensors with their names and the number of times that they were changed in place."""


class Member(NamedTuple):
    """A public name of the kit's base classes.

    Attributes:
        basic: the first definition, by the most basic class.
        all: every definition, the first one first.
    """

    basic: Any
    all: tuple[Any, ...]


class Interface:
    """What the kit's base classes say of a class from outside the kit."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        # Keys, and what forward does with them, are the contract's.
        left_out = (*DECLARATIONS, "forward") if issubclass(cls, Component) else ()
        self.members = {name: member for name, member in _members(cls).items() if name not in left_out}
        self.hints = {name: hint for name, hint in _attributes(cls).items() if name not in left_out}

    def wrap(self) -> None:
        """Puts checks around the methods and properties that classes from outside the kit define again."""
        for name, found in self._redefined():
            if isinstance(found, property) and found.fget is not None:
                getter = self._checked(name, found.fget)
                setattr(self.cls, name, property(getter, found.fset, found.fdel, found.__doc__))
            elif inspect.isfunction(found) and inspect.isfunction(self._basic(name)):
                setattr(self.cls, name, self._checked(name, found))

    def problem(self, component: object) -> str:
        """Says which attribute of an instance, or which method, is none as the kit uses it; "" if all are."""
        for name, found in self._redefined():
            basic = self._basic(name)
            if inspect.isfunction(basic) and not isinstance(found, (classmethod, staticmethod)):
                if not callable(found):
                    return f"{name} is {shown(found)}; it should be a method"
                if inspect.isfunction(found) and (why := uncallable(found, inspect.signature(basic))):
                    return f"{name}{inspect.signature(found)} cannot be called as {name}{_signature(basic)}: {why}"
        for name, hint in {**self.hints, **self._plain_properties()}.items():
            if isinstance(inspect.getattr_static(self.cls, name, None), property):
                continue
            value = getattr(component, name, inspect.Parameter.empty)  # annotated, but perhaps not set
            if value is not inspect.Parameter.empty and not _fits(value, hint):
                return f"{name} is {shown(value)}; it should be {inspect.formatannotation(hint)}"
        return ""

    def _redefined(self) -> Iterable[tuple[str, Any]]:
        """Yields the members that the nearest class with them is not the kit's own for, as they stand there."""
        for name in self.members.keys() | self.hints.keys():
            owner = next((cls for cls in self.cls.__mro__ if name in vars(cls)), None)
            if owner is not None and is_foreign(owner):
                yield name, vars(owner)[name]

    def _basic(self, name: str) -> Any:
        return self.members[name].basic if name in self.members else None

    def _plain_properties(self) -> dict[str, object]:
        basic = {name: member.basic for name, member in self.members.items()}
        return {name: _returned(found.fget) for name, found in basic.items() if isinstance(found, property)}

    def _checked(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a method with checks around it, for instances of the class itself: subclasses have their own."""
        cls, basic = self.cls, self._basic(name)
        if isinstance(basic, property):
            basic = basic.fget
        of_method = inspect.isfunction(basic)
        hint = _returned(basic) if of_method else self.hints.get(name, Any)
        wanted = _written(basic) if of_method else inspect.formatannotation(hint)
        signature = inspect.signature(basic) if of_method else None
        checks = [check for member in self.members.get(name, Member(None, ())).all if (check := promise_of(member))]

        @functools.wraps(method)
        def checked(component: Any, *args: Any, **kwargs: Any) -> Any:
            if type(component) is not cls:
                return method(component, *args, **kwargs)
            given = _bound(signature, component, args, kwargs)
            before = versions(given)
            try:
                result = method(component, *args, **kwargs)
            except SystemExit as error:
                raise ComponentError(f"{named(cls)}: {name} ended the program ({error!r})") from error
            if changed := changed_in_place(before):
                raise ComponentError(f"{named(cls)}: {name} changes {changed} in place; it should make a new tensor")
            if checks and given:
                problem = checks[0](result, given)
            else:
                problem = "" if _fits(result, hint) else f"{shown(result)}; it should be {wanted}"
            if problem:
                raise ComponentError(f"{named(cls)}: {name} returned {problem}")
            return result

        return checked


def versions(given: Mapping[str, Any]) -> Versions:
    """Lists the tensors among arguments, those in TensorDicts too, with how often they were changed in place."""
    found: Versions = []
    for name, value in given.items():
        if isinstance(value, TensorDictBase):
            leaves = value.items(include_nested=True, leaves_only=True)
            found += [(repr(key), leaf, leaf._version) for key, leaf in leaves if _is_counted(leaf)]
        elif _is_counted(value):
            found.append((f"its argument {name}", value, value._version))
    return found


def changed_in_place(before: Versions) -> str:
    """Returns the name of the first tensor that was changed since ``versions`` were taken; "" if none was."""
    return next((name for name, tensor, version in before if tensor._version != version), "")


def uncallable(method: Callable[..., object], basic: inspect.Signature) -> str:
    """Says why a method cannot be called with all arguments of another one, ``self`` included; "" if it can."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p.name for p in basic.parameters.values() if p.kind in kinds]
    by_name = [p.name for p in basic.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return unbindable(method, positional, by_name)


def unbindable(method: Callable[..., object], positional: Iterable[str], by_name: Iterable[str]) -> str:
    """Says why a method cannot be called with arguments by position and by name; "" if it can."""
    try:
        inspect.signature(method).bind(*positional, **dict.fromkeys(by_name))
    except TypeError as error:
        return str(error)
    return ""


def _members(cls: type) -> dict[str, Member]:
    found: dict[str, tuple[Any, ...]] = {}
    for base in reversed(cls.__mro__):
        if _is_kits(base):
            for name, member in vars(base).items():
                if _is_public(name) and (inspect.isfunction(member) or isinstance(member, property)):
                    found[name] = (*found.get(name, ()), member)
    return {name: Member(every[0], every) for name, every in found.items()}


def _attributes(cls: type) -> dict[str, object]:
    found: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        if _is_kits(base):
            own = [name for name in inspect.get_annotations(base) if _is_public(name)]
            found |= {name: hint for name, hint in _evaluated(base).items() if name in own}
    return {name: _inside(hint) for name, hint in found.items()}


def _is_kits(cls: type) -> bool:
    return not is_foreign(cls)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__call__"


def _evaluated(annotated: Any) -> dict[str, object]:
    try:
        return typing.get_type_hints(annotated)
    except NameError:  # a name that is imported for type checkers only
        return {}


def _inside(hint: object) -> object:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.ClassVar else hint


def _returned(method: Any) -> object:
    """Returns what a function's annotation says that it returns; ``Any`` where it says nothing that can be checked."""
    if inspect.unwrap(method) is not method:  # a context manager, whose annotation is of what it yields
        return Any
    hint = _evaluated(method).get("return", Any)
    return Any if hint is type(None) else hint


def _signature(method: Any) -> str:
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(method).parameters.values()]
    return str(inspect.Signature(parameters))


def _bound(signature: inspect.Signature | None, component: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of a call by their names in the base class; {} where the call is another."""
    try:
        bound = signature.bind(component, *args, **kwargs) if signature is not None else None
    except TypeError:
        bound = None
    if bound is None:
        return {}
    bound.apply_defaults()
    return bound.arguments


def _is_counted(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_inference()


def _written(method: Any) -> str:
    """Returns what a function returns as its annotation is written."""
    annotation = inspect.get_annotations(method).get("return")
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _fits(value: object, hint: object) -> bool:
    """Tells whether a value is of an annotated type; a list may stand for a tuple of any length."""
    if isinstance(value, list) and typing.get_origin(hint) is tuple:
        value = tuple(value)
    everything = typeguard.CollectionCheckStrategy.ALL_ITEMS
    try:
        typeguard.check_type(value, hint, collection_check_strategy=everything)
    except typeguard.TypeCheckError:
        return False
    return True
