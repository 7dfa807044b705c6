"""A program's objects as the tests see them: data is data, anything else a stand-in that asks the other process.

The tests compare values that the program cannot touch. What it returns as data is made anew, of built-in types. For any
other object there is a stand-in. Its special methods ask the program, except where the answer would let the program
decide a test: an operator between a stand-in and a value of the tests asks the program only if the tests made the
object themselves, by calling a class that the reference solution defines as a class. Any other object equals no data.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from dlmrl_kit.sandbox.inside.peer import Peer
from dlmrl_kit.sandbox.inside.program import MODULE

MESSAGE_BYTES, BUDGET_BYTES = 16 * 2**20, 64 * 2**20
"""Most bytes of one message of a program, and of all of them."""


def _dunders(names: str) -> frozenset[str]:
    return frozenset(f"__{name}__" for name in names.split())


ALONE = _dunders(
    "abs bool bytes call ceil complex delitem enter float floor format getitem hash int invert iter len missing neg "
    "next pos repr reversed round setitem str trunc"
)
"""Special methods that compare nothing with a value of the tests; the stand-in asks the program."""
PAIRED = _dunders(
    "eq ne lt le gt ge contains add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod divmod rdivmod "
    "pow rpow matmul rmatmul and rand or ror xor rxor lshift rlshift rshift rrshift"
)
"""Operators between two values."""


class Reference(NamedTuple):
    """Which object of the program a stand-in stands for, and whether the tests made it."""

    number: int
    made: bool


class Objects(Peer):
    """The tests' end of the channel.

    Args:
        channel: descriptor of the socket to the program.
        classes: names that the reference solution defines as classes.
    """

    def __init__(self, channel: int, classes: Collection[str]) -> None:
        super().__init__(channel, MESSAGE_BYTES, BUDGET_BYTES)
        self.disagreed = False
        """Whether an assertion failed in a function of the tests that the program called."""
        self._trusted = frozenset(classes)
        self._classes: dict[int, type] = {}
        self._makers: set[int] = set()
        self._standings: dict[Reference, Standing] = {}
        self._functions: list[Callable[..., object]] = []

    def load(self, source: str) -> None:
        """Runs the program; raises what it raises."""
        self.value(self.ask("load", source))

    def named(self, name: str) -> Any:
        """Returns what the program calls so.

        Raises:
            AttributeError: nothing.
        """
        found = self.value(self.ask("get", 0, name))
        if isinstance(found, type) and name in self._trusted:
            self._makers.add(self._number_of_class(found))
        return found

    def module(self, names: Collection[str]) -> types.ModuleType:
        """Returns a module whose attributes are the program's; ``import *`` takes ``names``."""
        module = types.ModuleType(MODULE)
        module.__dict__.update(__all__=list(names), __getattr__=self.named)
        return module

    def value(self, reply: list[Any]) -> Any:
        """Returns the value of a reply, or raises the exception in it."""
        if reply[0] == "value" and len(reply) > 1:
            return reply[1]
        if reply[0] != "raised" or len(reply) != 3 or not isinstance(reply[2], list):
            self._lose()
        raise self._exception(reply[1], reply[2])

    def call(self, number: int, made: bool, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Calls an object of the program; lists and dicts that it changed are changed here if it returns None."""
        reply = self.ask("call", number, list(arguments), named)
        result = self._function_value(reply)
        if len(reply) == 3 and result is None:
            places: dict[int | str, Any] = dict(enumerate(arguments))
            self._change(places | dict(named.items()), reply[2])
        return (
            self._standing(type(result), reference_of(result).number, made) if isinstance(result, Standing) else result
        )

    def special(self, number: int, name: str, *arguments: Any) -> Any:
        """Calls a special method of an object of the program."""
        reply = self.ask("special", number, name, list(arguments))
        return self.value(reply) if name in ("__next__", "__anext__") else self._function_value(reply)

    def answer(self, message: list[Any]) -> list[Any]:
        """Calls a function of the tests for the program, which was given it; there is no other request."""
        try:
            kind, number, arguments, named = message
            function = self._functions[number]
        except (ValueError, IndexError, TypeError):
            self._lose()
        if kind != "call back":
            self._lose()
        try:
            return ["value", function(*arguments, **named)]
        except AssertionError as error:
            self.disagreed = True
            return ["raised", "AssertionError", [str(error)]]
        except Exception as error:
            own = next((n for n, cls in self._classes.items() if cls is type(error)), None)
            return ["raised", _nearest(type(error)).__name__ if own is None else type(error), list(error.args)]

    def describe(self, value: object) -> object:
        """Returns what stands for an object of the program, of the standard library, or a function of the tests."""
        if isinstance(value, Standing):
            return ["mine", reference_of(value).number]
        if isinstance(value, type) and value in self._classes.values():
            return ["mine", self._number_of_class(value)]
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) and _in_standard_library(value):
            return ["named", value.__module__, value.__qualname__]
        if isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
            self._functions.append(value)
            return ["function", len(self._functions) - 1]
        raise TypeError(f"the tests pass an object of {type(value).__qualname__}, which is no data")

    def find(self, reference: Any) -> object:
        """Returns the stand-in of an object of the program.

        Raises:
            ValueError: it is none.
        """
        if reference == ["not implemented"]:
            return NotImplemented
        kind, *numbers = reference
        if not all(isinstance(number, int) for number in numbers):
            raise ValueError("no reference")
        if kind == "class" and len(numbers) == 1:
            return self._class(numbers[0])
        if kind != "instance" or len(numbers) != 2:
            raise ValueError("no reference")
        cls = self._class(numbers[1])
        return self._standing(cls if issubclass(cls, Standing) else Standing, numbers[0], False)

    def _standing(self, cls: type[Standing], number: int, made: bool) -> Standing:
        """Returns the stand-in of an object, the same one each time (apart from those that the tests made)."""
        reference = Reference(number, made)
        if reference not in self._standings:
            standing = self._standings[reference] = object.__new__(cls)
            object.__setattr__(standing, "_objects", self)
            object.__setattr__(standing, "_reference", reference)
        return self._standings[reference]

    def _class(self, number: int) -> type:
        if number not in self._classes:
            described = self.value(self.ask("class", number))
            self._classes[number] = self._make_class(number, *described)
        return self._classes[number]

    def _make_class(self, number: int, name: str, special: list[str], bases: list[int], exception: str | None) -> type:
        if not isinstance(name, str):
            raise ValueError("no class")
        kind = Standing if exception is None else BaseException
        known = dict.fromkeys(self._class(base) for base in bases if base != number)
        parents = tuple(base for base in known if issubclass(base, kind))
        if exception is not None:
            return type(name, parents or (_exception_named(exception),), {"__module__": MODULE})
        methods: dict[str, Any] = {method: _alone(method) for method in ALONE.intersection(special)}
        methods |= {method: _paired(method) for method in PAIRED.intersection(special)}
        if "__exit__" in special:
            methods["__exit__"] = _leave
        return StandingClass(
            name, parents or (Standing,), {"_objects": self, "_number": number, "__module__": MODULE, **methods}
        )

    def _number_of_class(self, cls: type) -> int:
        return next(number for number, known in self._classes.items() if known is cls)

    def is_maker(self, number: int) -> bool:
        """Tells whether calling this class makes an object of the tests."""
        return number in self._makers

    def _function_value(self, reply: list[Any]) -> Any:
        """Returns the value of a call. An exception that ends loops must not end one of the tests'."""
        try:
            return self.value(reply)
        except (StopIteration, StopAsyncIteration) as error:
            raise RuntimeError(f"the program raised {type(error).__name__}") from None

    def _exception(self, cls: object, arguments: list[Any]) -> BaseException:
        kind = cls if isinstance(cls, type) and issubclass(cls, BaseException) else _exception_named(cls)
        try:
            return kind(*arguments)
        except Exception:
            return RuntimeError(f"the program raised {kind.__name__}")

    def _change(self, arguments: dict[int | str, Any], changed: object) -> None:
        if not isinstance(changed, dict):
            self._lose()
        for place, value in changed.items():
            _change(arguments.get(place), value)


class StandingClass(type):
    """The class of the classes of stand-ins: calling one, or asking for an attribute, asks the program."""

    _objects: Objects
    _number: int

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        """Makes an object of the program."""
        return cls._objects.call(cls._number, cls._objects.is_maker(cls._number), arguments, named)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or "_number" not in vars(cls):
            raise AttributeError(name)
        return cls._objects.value(cls._objects.ask("get", cls._number, name))


class Standing(metaclass=StandingClass):
    """Stands for an object of the program."""

    _objects: Objects
    _reference: Reference

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__", "__wrapped__"):
            raise AttributeError(name)
        return self._objects.value(self._objects.ask("get", self._reference.number, name))

    def __setattr__(self, name: str, value: object) -> None:
        self._objects.value(self._objects.ask("set", self._reference.number, name, value))

    def __delattr__(self, name: str) -> None:
        self._objects.value(self._objects.ask("delete", self._reference.number, name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Standing) and reference_of(self).number == reference_of(other).number

    def __hash__(self) -> int:
        return self._reference.number


def reference_of(standing: Standing) -> Reference:
    """Returns which object a stand-in stands for."""
    reference: Reference = object.__getattribute__(standing, "_reference")
    return reference


def _alone(name: str) -> Callable[..., Any]:
    def method(self: Standing, *arguments: Any, **named: Any) -> Any:
        reference = reference_of(self)
        if name == "__call__":
            return self._objects.call(reference.number, False, arguments, named)
        return self._objects.special(reference.number, name, *arguments)

    return method


def _paired(name: str) -> Callable[..., Any]:
    def method(self: Standing, other: object) -> Any:
        reference = reference_of(self)
        if reference.made or isinstance(other, Standing):
            return self._objects.special(reference.number, name, other)
        if name == "__contains__":
            return any(other is element or other == element for element in type(self).__iter__(self))
        return NotImplemented

    return method


def _leave(self: Standing, cls: type | None, error: BaseException | None, trace: object) -> bool:
    """Leaves a context of the program, which cannot make a failed assertion unseen."""
    suppress = self._objects.special(reference_of(self).number, "__exit__", cls, None, None)
    return bool(suppress) and isinstance(error, Exception) and not isinstance(error, AssertionError)


def _change(old: object, new: object) -> None:
    """Gives a list, dict, set or bytearray the contents of another one; those in it stay the same objects."""
    if type(old) is not type(new):
        return
    if isinstance(old, list) and isinstance(new, list):
        old[:] = [_kept(mine, theirs) for mine, theirs in zip(old, new, strict=False)] + new[len(old) :]
    elif isinstance(old, dict) and isinstance(new, dict):
        kept = {key: _kept(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(kept)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new


def _kept(mine: object, theirs: object) -> object:
    if type(mine) is type(theirs) and isinstance(mine, list | dict | set | bytearray):
        _change(mine, theirs)
        return mine
    return theirs


def _exception_named(name: object) -> type[BaseException]:
    """Returns a built-in exception; ``RuntimeError`` for other names, and for those that are no errors."""
    found = getattr(builtins, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, Exception | SystemExit) else RuntimeError


def _nearest(cls: type[BaseException]) -> type[BaseException]:
    return next(base for base in cls.__mro__ if base.__module__ == "builtins")


def _in_standard_library(value: type | types.FunctionType | types.BuiltinFunctionType) -> bool:
    """Tells whether something can be imported by its name in any process."""
    module = value.__module__
    return bool(module) and module.split(".")[0] in sys.stdlib_module_names and "<" not in value.__qualname__
