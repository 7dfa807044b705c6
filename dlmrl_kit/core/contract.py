"""Holds plugins to their contract: a component declares its keys, and writes what it declares, in the right form.

``@register`` guards every component from outside the kit. A mistake in one is then reported under its name when it is
built or run, and not as a failure deep inside another component. ``core.interface`` does the same for what is no key:
methods, what they return, and attributes.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core import blame
from dlmrl_kit.core.component import DECLARATIONS, Component, malformed, no_service
from dlmrl_kit.core.errors import ComponentError, DeclarationError, RecipeError, RegistryError
from dlmrl_kit.core.interface import Interface, changed_in_place, unbindable, versions
from dlmrl_kit.core.keys import COMPLETION_IDS, KEYS, SELECTED_STEP, SELECTED_WEIGHT, Key, letters_of
from dlmrl_kit.core.promises import device_of, shown, tensor_fault


def guard(cls: type, name: str, *, is_term: bool) -> None:
    """Makes a class check itself whenever an instance is built or used, see ``core.interface``.

    A ``Component`` also checks its declarations when it is built, and the written keys when it runs. Subclasses that
    are not registered themselves are left alone.

    Args:
        cls: the class, whose constructor and methods are wrapped.
        name: how errors name it.
        is_term: whether ``forward`` returns what is minimised instead of adding keys to the trajectory.

    Raises:
        RegistryError: the class declares malformed keys.
    """
    if issubclass(cls, Component):
        for attribute in DECLARATIONS:
            declared = vars(cls).get(attribute, ())
            if not isinstance(declared, property) and (problem := malformed(declared)):
                raise RegistryError(f"{name}: {attribute} {problem}")
    _Guard(cls, name, is_term).wrap()


class _Guard:
    """Wraps one registered class in checks."""

    def __init__(self, cls: type, name: str, is_term: bool) -> None:
        self.cls, self.is_term, self.full_name = cls, is_term, name
        self.interface = Interface(cls)

    @property
    def name(self) -> str:
        """The full name of the class and, where pip installed it, the distribution with its version."""
        origin = blame.distribution_of(self.cls.__module__.split(".", 1)[0])
        return f"{self.full_name} ({origin})" if origin else self.full_name

    def wrap(self) -> None:
        """Puts the checks around the constructor and the methods of the class."""
        self.interface.wrap()
        construct: Callable[..., None] = self.cls.__init__  # type: ignore[misc]

        @functools.wraps(construct)
        def checked_construct(component: Any, *args: Any, **kwargs: Any) -> None:
            try:
                construct(component, *args, **kwargs)
            except DeclarationError as error:
                raise DeclarationError(self.name, error.problem) from error
            if self._is_for(component):
                self._check_instance(component)

        self.cls.__init__ = checked_construct  # type: ignore[misc]
        if issubclass(self.cls, Component) and inspect.isfunction(self.cls.forward):
            self.cls.forward = self._checked_forward(self.cls.forward)

    def _checked_forward(self, forward: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(forward)
        def checked_forward(component: Component, *args: Any, **kwargs: Any) -> object:
            given = args[0] if args else None
            if not isinstance(given, TensorDictBase) or not self._is_for(component):
                return forward(component, *args, **kwargs)
            before, counted = _leaves(given), versions({"tensordict": given})
            try:
                result = forward(component, *args, **kwargs)
            except KeyError as error:
                raise self._fault(self._key_error(component, error)) from error
            except SystemExit as error:
                raise self._fault(f": forward ended the program ({error!r})") from error
            if not isinstance(result, TensorDictBase):
                end = "; end it with `return tensordict`" if result is None else ""
                raise self._fault(f": forward must return a TensorDict, it returned {shown(result)}{end}")
            if changed := changed_in_place(counted):
                raise self._fault(f": forward changes {changed} in place; a component only adds keys")
            if self.is_term:
                self._check_term(component, given, result)
            else:
                self._check_written(component.writes(kwargs.get("keys", ())), before, given, result)
                if component.has_gradient:
                    self._check_gradient(component, result)
            return result

        return checked_forward

    def _is_for(self, component: object) -> bool:
        # A subclass is checked when its own constructor or forward is done, as it may still change what the base did.
        return type(component) is self.cls

    def _check_instance(self, component: object) -> None:
        if isinstance(component, Component):
            self._check_declarations(component)
        if problem := self.interface.problem(component):
            raise DeclarationError(self.name, problem)
        if isinstance(component, Component):
            forward = type(component).forward
            if not inspect.isfunction(forward):
                raise DeclarationError(self.name, f"forward is {shown(forward)}; it should be a method")
            if inspect.unwrap(forward) is Component.forward:
                raise DeclarationError(self.name, "it has no method forward")
            keys = ("keys",) if component.optional_keys else ()
            names = dict.fromkeys((*component.requires, *keys, *component.always_given))
            if why := unbindable(component.forward, ["tensordict"], names):
                call = ", ".join(["tensordict", *(f"{name}=..." for name in names)])
                raise DeclarationError(self.name, f"forward cannot be called as forward({call}): {why}")

    def _fault(self, problem: str) -> ComponentError:
        """Makes the error that names the component and says what is wrong with it."""
        return ComponentError(f"{self.name}{problem}")

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

    def _check_term(self, component: Component, given: TensorDictBase, result: TensorDictBase) -> None:
        found = dict(result.items())
        losses = [value for key, value in found.items() if isinstance(key, str) and key.startswith("loss_")]
        if not losses:
            raise self._fault(": no key that it returns starts with 'loss_': there is nothing to minimise")
        device = device_of(given)
        undeclared = [key for key in found if key not in component.out_keys]
        if undeclared:
            raise self._fault(f" returns {undeclared[0]!r}, which is not in its out_keys {list(component.out_keys)}")
        missing = [key for key in component.out_keys if key not in found]
        if missing:
            raise self._fault(f" does not return {missing[0]!r}, which is in its out_keys")
        for key, value in found.items():
            if problem := tensor_fault(value, "real", (), device=device):
                raise self._fault(f" returns {key!r} as {problem}")
        # Whether anything is selected is only looked at where there is no gradient.
        if torch.is_grad_enabled() and not any(value.requires_grad for value in losses):
            read = [given.get(key, None) for key in component.in_keys]
            learns = any(value is not None and value.requires_grad for value in read)
            if learns and bool((given[SELECTED_WEIGHT] != 0).any()):
                raise self._fault(" returns a loss without gradient, although what it reads has one")

    def _check_written(
        self, declared: tuple[Key, ...], before: Mapping[Key, object], given: TensorDictBase, result: TensorDictBase
    ) -> None:
        after = _leaves(result)
        self._check_form(before, {key: value for key, value in after.items() if key not in before}, given.device)
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

    def _check_gradient(self, component: Component, result: TensorDictBase) -> None:
        """Refuses keys without gradient; whether anything is selected is only looked at where there is none."""
        detached = [key for key in component.out_keys if not result[key].requires_grad]
        if torch.is_grad_enabled() and detached and bool((result[SELECTED_WEIGHT] != 0).any()):
            raise self._fault(f" writes {detached[0]!r} without gradient")

    def _check_form(
        self, before: Mapping[Key, object], written: Mapping[Key, object], device: torch.device | None
    ) -> None:
        """Compares with what ``core.keys`` says, as a wrong shape would fail far from here, or broadcast."""
        sizes: dict[str, int] = {}
        for key, value in before.items():
            if key in KEYS and isinstance(value, Tensor):
                sizes |= zip(letters_of(key), value.shape, strict=False)
                device = device or value.device
        if SELECTED_STEP in written:
            sizes.pop("K", None)  # a new selection has a K of its own
        if COMPLETION_IDS in written:  # and new trajectories have their own lengths
            sizes.pop("L", None)
            sizes.pop("T", None)
        for key, value in written.items():
            if key not in KEYS or not isinstance(value, Tensor):
                continue
            letters = letters_of(key)
            agree = all(sizes.get(letter, size) == size for letter, size in zip(letters, value.shape, strict=False))
            if value.dim() != len(letters) or not agree:
                known = [str(sizes.get(letter, letter)) for letter in letters]
                shape = f"{KEYS[key].shape}, here [{', '.join(known)}]"
                raise self._fault(f" writes {key!r} with shape {list(value.shape)}; it should be {shape}")
            form = _FORMS.get(KEYS[key].dtype, "real")
            if problem := tensor_fault(value, form, value.shape, device=device or value.device):
                raise self._fault(f" writes {key!r} as {problem}")

    def _key_error(self, component: Component, error: KeyError) -> str:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "tensordict" not in f.filename]
        where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        message = " ".join(str(error.args[0] if error.args else error).split())
        return f" failed with KeyError: {message}{where}; it may read its in_keys {list(component.in_keys)}"


_FORMS = {"bool": "bool", "int64": "int64", "int32": "integer", "int16": "integer"}
"""By the dtype of a key, what is written may be; real numbers may be float64 wherever they may be float32."""


def _leaves(tensordict: TensorDictBase) -> dict[Key, object]:
    return dict(tensordict.items(include_nested=True, leaves_only=True))
