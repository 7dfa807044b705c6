"""The process that runs a model's program: it does with the program's objects what it is asked to, and sends data back.

It knows nothing of the tests. Whatever the program does to this module, or to the interpreter, it can only send other
data; who reads that takes nothing else (``dlmrl_kit.sandbox.inside.objects``).
"""

from __future__ import annotations

import _thread
import importlib
import os
import sys
import types

from dlmrl_kit.sandbox.inside.limits import limit_process
from dlmrl_kit.sandbox.inside.peer import Gone, Peer
from dlmrl_kit.sandbox.inside.plain_data import to_bytes
from dlmrl_kit.sandbox.inside.streams import close_standard_streams

TYPE_CHECKING = False  # of typing, whose import takes a sandbox a tenth of its start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MODULE = "solution"
"""The name of the module that the program is."""
READY = b"!"
"""The first byte that comes through the channel: Python has started."""


class Program(Peer):
    """Runs a program and answers requests about its objects, which have numbers."""

    def __init__(self, channel: int) -> None:
        super().__init__(channel)
        self._module = types.ModuleType(MODULE)
        self._objects: list[object] = [self._module]
        self._numbers: dict[int, int] = {id(self._module): 0}
        self._thread = _thread.get_ident()
        self._requests: dict[str, Callable[..., list[Any]]] = {
            "load": self._load,
            "get": lambda number, name: ["value", getattr(self._objects[number], name)],
            "set": self._set,
            "delete": self._delete,
            "call": self._call,
            "special": self._special,
            "class": lambda number: ["value", self._class(number)],
        }

    def serve(self) -> None:
        """Answers requests until the other end has gone."""
        while True:
            self.reply(self.receive())

    def answer(self, message: list[Any]) -> list[Any]:
        """Does what a request asks; an exception becomes the reply."""
        try:
            return self._requests[message[0]](*message[1:])
        except Gone:
            raise
        except BaseException as error:  # SystemExit too
            return self._raised(error)

    def describe(self, value: object) -> object:
        """Returns the number of an object, and of its class; ``NotImplemented`` has none."""
        if value is NotImplemented:
            return ["not implemented"]
        if isinstance(value, type):
            return ["class", self._number(value)]
        return ["instance", self._number(value), self._number(type(value))]

    def find(self, reference: Any) -> object:
        """Returns one of the program's objects, something of the standard library, or a function of the tests."""
        kind, *rest = reference
        if kind == "mine":
            return self._objects[rest[0]]
        if kind == "named":
            found: object = importlib.import_module(rest[0])
            for name in rest[1].split("."):
                found = getattr(found, name)
            return found
        number = rest[0]

        def function(*arguments: Any, **named: Any) -> Any:
            if _thread.get_ident() != self._thread:
                raise RuntimeError("a function of the tests can only be called in the main thread")
            return self._result(self.ask("call back", number, list(arguments), named))

        return function

    def _result(self, reply: list[Any]) -> Any:
        if reply[0] == "value":
            return reply[1]
        cls, arguments = reply[1], reply[2]
        raise (cls if isinstance(cls, type) else getattr(importlib.import_module("builtins"), cls))(*arguments)

    def _number(self, value: object) -> int:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)  # which keeps its id from being used again
        return number

    def _load(self, source: str) -> list[Any]:
        sys.modules[MODULE] = self._module
        if "random" in source:  # importing it takes time
            importlib.import_module("random").seed(0)
        exec(compile(source, f"<{MODULE}>", "exec"), self._module.__dict__)
        return ["value", None]

    def _set(self, number: int, name: str, value: object) -> list[Any]:
        setattr(self._objects[number], name, value)
        return ["value", None]

    def _delete(self, number: int, name: str) -> list[Any]:
        delattr(self._objects[number], name)
        return ["value", None]

    def _call(self, number: int, arguments: list[Any], named: dict[str, Any]) -> list[Any]:
        function: Any = self._objects[number]
        result = function(*arguments, **named)
        if result is not None:
            return ["value", result]
        places: list[tuple[int | str, object]] = [*enumerate(arguments), *named.items()]
        changed = {place: value for place, value in places if type(value) in (list, dict, set, bytearray)}
        return ["value", None, changed] if changed else ["value", None]

    def _special(self, number: int, name: str, arguments: list[Any]) -> list[Any]:
        value = self._objects[number]
        return ["value", getattr(type(value), name)(value, *arguments)]

    def _class(self, number: int) -> list[Any]:
        """Returns what a class is like: name, special methods, bases that the program wrote, built-in exception."""
        cls = self._objects[number]
        assert isinstance(cls, type)
        special = {
            name
            for base in cls.__mro__[:-1]
            for name, value in vars(base).items()
            if name.startswith("__") and callable(value)
        }
        bases = [self._number(base) for base in cls.__bases__ if base.__module__ == MODULE]
        return [cls.__name__, sorted(special), bases, _built_in(cls) if issubclass(cls, BaseException) else None]

    def _raised(self, error: BaseException) -> list[Any]:
        cls = type(error)
        own = cls if cls.__module__ == MODULE else _built_in(cls)
        try:
            to_bytes(list(error.args))
            arguments = list(error.args)
        except Exception:
            arguments = [str(error)]
        return ["raised", own, arguments]


def _built_in(cls: type) -> str:
    """Returns the name of the built-in exception that a class of exceptions is or inherits from."""
    return next(base.__name__ for base in cls.__mro__ if base.__module__ == "builtins")


def main() -> None:
    """Runs a program: standard input is the channel, the arguments are bytes of memory and seconds of processor."""
    memory, seconds = map(int, sys.argv[1:3])
    limit_process(memory, seconds)
    channel = os.dup(0)
    close_standard_streams()
    program = Program(channel)
    os.write(channel, READY)
    try:
        program.serve()
    except Gone:
        os._exit(0)
