"""Signatures of constructors; imports no torch, so that modules that must load fast can use it."""

from __future__ import annotations

import inspect
from collections.abc import Callable


def constructor_of(cls: type) -> inspect.Signature:
    """Returns the signature of a constructor as its caller sees it, without ``self``.

    ``inspect.signature(cls)`` is another one where a class has ``__new__`` besides, as torch's and tensordict's modules
    do: before Python 3.11.5 that counts first, and it takes anything.
    """
    constructor = cls.__init__  # type: ignore[misc]
    if constructor is object.__init__:
        return inspect.Signature()
    found = inspect.signature(constructor)
    return found.replace(parameters=list(found.parameters.values())[1:])


def with_parameters_of(base: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a constructor that passes ``*args`` and ``**kwargs`` on to ``base``: its signature then lists them all.

    Recipes, the catalogue and ``rebuilt`` read signatures, and so see the parameters of both; the base's come first. A
    parameter that the constructor names itself has its own default.
    """

    def decorate(constructor: Callable[..., None]) -> Callable[..., None]:
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        inherited = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        own = {n: p for n, p in inspect.signature(constructor).parameters.items() if p.kind not in kinds}
        both = [own.get(name, p) for name, p in inherited.items()] + [p for n, p in own.items() if n not in inherited]
        constructor.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
        return constructor

    return decorate
