"""Holds plugins to their contract: a component declares its keys, and writes what it declares, in the right shapes.

``@register`` guards every component from outside the kit. A mistake in one is then reported under its name when it is
built or run, and not as a failure deep inside another component.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core import blame
from dlmrl_kit.core.component import DECLARATIONS, Component, malformed, no_service
from dlmrl_kit.core.errors import DeclarationError, RecipeError, RegistryError
from dlmrl_kit.core.keys import KEYS, SELECTED_STEP, Key


def guard(cls: type, name: str, *, is_term: bool) -> None:
    """Makes a class check its declarations whenever an instance is built, and the written keys whenever one runs.

    Classes that are no ``Component`` (tasks, policies, ...) are left alone, and so are subclasses that are not
    registered themselves.

    Args:
        cls: the class, whose constructor and ``forward`` are wrapped.
        name: how errors name it.
        is_term: whether ``forward`` returns what is minimised instead of adding keys to the trajectory.

    Raises:
        RegistryError: the class declares malformed keys.
    """
    if not issubclass(cls, Component):
        return
    for attribute in DECLARATIONS:
        declared = vars(cls).get(attribute, ())
        if not isinstance(declared, property) and (problem := malformed(declared)):
            raise RegistryError(f"{name}: {attribute} {problem}")
    _Guard(cls, name, is_term).wrap()


class _Guard:
    """Wraps one registered class in checks."""

    def __init__(self, cls: type[Component], name: str, is_term: bool) -> None:
        self.cls, self.name, self.is_term = cls, name, is_term

    def wrap(self) -> None:
        """Puts the checks around the constructor and ``forward`` of the class."""
        construct: Callable[..., None] = self.cls.__init__
        forward: Callable[..., object] = self.cls.forward

        @functools.wraps(construct)
        def checked_construct(component: Component, *args: Any, **kwargs: Any) -> None:
            try:
                construct(component, *args, **kwargs)
            except DeclarationError as error:
                raise DeclarationError(self.name, error.problem) from error
            if self._is_for(component):
                self._check_declarations(component)

        @functools.wraps(forward)
        def checked_forward(component: Component, *args: Any, **kwargs: Any) -> object:
            given = args[0] if args else None
            if not isinstance(given, TensorDictBase) or not self._is_for(component):
                return forward(component, *args, **kwargs)
            before = _leaves(given)
            try:
                result = forward(component, *args, **kwargs)
            except KeyError as error:
                raise self._fault(self._key_error(component, error)) from error
            if not isinstance(result, TensorDictBase):
                raise self._fault(f": forward must return a TensorDict, it returned {_shown(result)}")
            if self.is_term:
                self._check_term(result)
            else:
                self._check_written(component.writes(kwargs.get("keys", ())), before, given, result)
            return result

        self.cls.__init__ = checked_construct  # type: ignore[assignment, method-assign]
        self.cls.forward = checked_forward

    def _is_for(self, component: Component) -> bool:
        # A subclass is checked when its own constructor or forward is done, as it may still change what the base did.
        return type(component) is self.cls

    def _fault(self, problem: str) -> RecipeError:
        """Makes an error of the component's full name, the version that pip installed, and what is wrong with it."""
        origin = blame.distribution_of(self.cls.__module__.split(".", 1)[0])
        return RecipeError(f"{self.name}{f' ({origin})' if origin else ''}{problem}")

    def _check_declarations(self, component: Component) -> None:
        if not component.initialised:
            raise DeclarationError(self.name, "its constructor must call super().__init__()")
        for attribute in DECLARATIONS:
            try:
                declared = getattr(component, attribute)
            except AttributeError:
                problem = f"{attribute} is not set; a component declares the keys it reads and writes"
                raise DeclarationError(self.name, problem) from None
            if problem := malformed(declared):  # a property may return anything
                raise DeclarationError(self.name, f"{attribute} {problem}")
        if (wrong := no_service(component.requires)) is not None:
            raise RecipeError(f"{self.name} {wrong[0]}; {wrong[1]}")

    def _check_term(self, result: TensorDictBase) -> None:
        names = result.keys()
        if not any(isinstance(key, str) and key.startswith("loss_") for key in names):
            raise self._fault(": no key that it returns starts with 'loss_': there is nothing to minimise")

    def _check_written(
        self, declared: tuple[Key, ...], before: Mapping[Key, object], given: TensorDictBase, result: TensorDictBase
    ) -> None:
        after = _leaves(result)
        self._check_shapes(before, {key: value for key, value in after.items() if key not in before})
        undeclared = [key for key in after if key not in before and key not in declared]
        if undeclared:
            raise self._fault(f" writes {undeclared[0]!r}, which is not in its out_keys {list(declared)}")
        missing = [key for key in declared if key not in after]
        if missing:
            raise self._fault(f" does not write {missing[0]!r}, which is in its out_keys")
        gone = [key for key in before if key not in after]
        if gone:
            raise self._fault(f": {gone[0]!r} is gone from the trajectory; a component adds keys and returns it")
        changed = [key for key in before if result is given and after[key] is not before[key]]
        if changed:
            raise self._fault(f" overwrites {changed[0]!r}, which was there before; a component only adds keys")

    def _check_shapes(self, before: Mapping[Key, object], written: Mapping[Key, object]) -> None:
        """Compares shapes with what ``core.keys`` says, as a wrong one would fail far from here, or broadcast."""
        sizes: dict[str, int] = {}
        for key, value in before.items():
            if key in KEYS and isinstance(value, Tensor):
                sizes |= zip(_letters(key), value.shape, strict=False)
        if SELECTED_STEP in written:
            sizes.pop("K", None)  # a new selection has a K of its own
        for key, value in written.items():
            if key not in KEYS or not isinstance(value, Tensor):
                continue
            letters = _letters(key)
            agree = all(sizes.get(letter, size) == size for letter, size in zip(letters, value.shape, strict=False))
            if value.dim() != len(letters) or not agree:
                known = [str(sizes.get(letter, letter)) for letter in letters]
                shape = f"{KEYS[key].shape}, here [{', '.join(known)}]"
                raise self._fault(f" writes {key!r} with shape {list(value.shape)}; it should be {shape}")

    def _key_error(self, component: Component, error: KeyError) -> str:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "tensordict" not in f.filename]
        where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        message = " ".join(str(error.args[0] if error.args else error).split())
        return f" failed with KeyError: {message}{where}; it may read its in_keys {list(component.in_keys)}"


def _letters(key: Key) -> list[str]:
    return KEYS[key].shape.strip("[]").split(", ")


def _leaves(tensordict: TensorDictBase) -> dict[Key, object]:
    return dict(tensordict.items(include_nested=True, leaves_only=True))


def _shown(value: object) -> str:
    return "None; end it with `return tensordict`" if value is None else f"a {type(value).__name__}"
