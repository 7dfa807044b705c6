"""What the kit holds components from elsewhere to: they declare their keys, and write what they declare.

Components outside the kit are wrapped when they are registered, so that a mistake is an error that names the component,
at the moment it is built or runs, instead of a failure deep inside something else.
"""

from __future__ import annotations

import functools
import sys
import traceback
from typing import TYPE_CHECKING, Any

from dlmrl_kit.core.errors import RecipeError, RegistryError

if TYPE_CHECKING:
    from tensordict import TensorDictBase

    from dlmrl_kit.core.registry import Component

TERMS = frozenset({"loss", "regulariser"})
"""Kinds that return a TensorDict of their own instead of adding keys to the trajectory."""


def guard(component: Component) -> None:
    """Makes a component check its keys when it is built, and what it wrote each time it ran.

    Classes that are no TensorDict modules (tasks, policies, ...) are left alone, and so are subclasses that are not
    registered themselves.

    Raises:
        RegistryError: malformed keys in the class itself.
    """
    cls: Any = component.cls
    if "tensordict.nn" not in sys.modules:  # then nothing can inherit from it
        return
    from tensordict.nn import TensorDictModuleBase

    if not issubclass(cls, TensorDictModuleBase):
        return
    for attribute in ("in_keys", "out_keys", "optional_keys"):
        declared = vars(cls).get(attribute, ())
        if not isinstance(declared, property) and (problem := malformed(declared)):
            raise RegistryError(f"{component.gin_name}: {attribute} {problem}")
    cls.__init__ = _checked_init(component, cls.__init__)
    cls.forward = _checked_forward(component, cls.forward)


def malformed(keys: Any) -> str:
    """What is wrong with a declaration of keys, as the end of a sentence; empty if nothing is."""
    must = "must be a list of keys, each a str or a tuple of str,"
    if not isinstance(keys, (list, tuple)):
        return f"{must} got {keys!r}" + (f"; write [{keys!r}]" if isinstance(keys, str) else "")
    wrong = [key for key in keys if not _is_key(key)]
    return f"{must} got {wrong[0]!r} among them" if wrong else ""


def _is_key(key: Any) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return bool(parts) and all(isinstance(part, str) and part for part in parts)


def _checked_init(component: Component, init: Any) -> Any:
    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except (TypeError, RuntimeError) as error:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                attribute = frame.f_code.co_name
                if attribute in ("in_keys", "out_keys") and "value" in frame.f_locals:  # tensordict's setters
                    problem = malformed(frame.f_locals["value"]) or str(error)
                    raise RecipeError(f"{component.gin_name}: {attribute} {problem}") from error
            raise
        if type(self) is component.cls:
            _check_declarations(component.gin_name, self)

    return checked


def _check_declarations(name: str, instance: Any) -> None:
    from dlmrl_kit.core.component import SERVICES

    if "_asked" not in vars(instance) and hasattr(type(instance), "asked"):
        raise RecipeError(f"{name}: its constructor must call super().__init__()")
    for attribute in ("in_keys", "out_keys", "optional_keys"):
        if not hasattr(instance, attribute):
            if attribute == "optional_keys":
                continue
            raise RecipeError(f"{name}: {attribute} is not set; a component declares the keys it reads and writes")
        if problem := malformed(getattr(instance, attribute)):
            raise RecipeError(f"{name}: {attribute} {problem}")
    unknown = [service for service in getattr(instance, "requires", ()) if service not in SERVICES]
    if unknown:
        raise RecipeError(f"{name} requires {unknown[0]!r}, which is no service; there are {', '.join(SERVICES)}")


def _checked_forward(component: Component, forward: Any) -> Any:
    @functools.wraps(forward)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        from tensordict import TensorDictBase

        given = args[0] if args else None
        if type(self) is not component.cls or not isinstance(given, TensorDictBase):
            return forward(self, *args, **kwargs)
        before = _leaves(given)
        try:
            result = forward(self, *args, **kwargs)
        except KeyError as error:
            raise RecipeError(_key_error(component.gin_name, self, error)) from error
        if not isinstance(result, TensorDictBase):
            raise RecipeError(f"{component.gin_name}: forward must return a TensorDict, it returned {_shown(result)}")
        if component.kind in TERMS:
            names = result.keys()
            if not any(isinstance(key, str) and key.startswith("loss_") for key in names):
                raise RecipeError(
                    f"{component.gin_name}: no key that it returns starts with 'loss_': nothing to descend"
                )
        else:
            _check_written(component.gin_name, self, before, given, result)
        return result

    return checked


def _check_written(
    name: str, instance: Any, before: dict[Any, Any], given: TensorDictBase, result: TensorDictBase
) -> None:
    after = _leaves(result)
    declared = instance.written_keys() if hasattr(instance, "written_keys") else instance.out_keys
    undeclared = [key for key in after if key not in before and key not in declared]
    if undeclared:
        raise RecipeError(f"{name} writes {undeclared[0]!r}, which is not in its out_keys {list(declared)}")
    missing = [key for key in declared if key not in after]
    if missing:
        raise RecipeError(f"{name} does not write {missing[0]!r}, which is in its out_keys")
    gone = [key for key in before if key not in after]
    if gone:
        raise RecipeError(f"{name}: {gone[0]!r} is gone from the trajectory; a component adds keys and returns it")
    changed = [key for key in before if result is given and after[key] is not before[key]]
    if changed:
        raise RecipeError(f"{name} overwrites {changed[0]!r}, which was there before; a component only adds keys")


def _leaves(tensordict: TensorDictBase) -> dict[Any, Any]:
    return dict(tensordict.items(include_nested=True, leaves_only=True))


def _key_error(name: str, instance: Any, error: KeyError) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "tensordict" not in f.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    message = " ".join(str(error.args[0] if error.args else error).split())
    return f"{name} failed with KeyError: {message}{where}; it may read its in_keys {list(instance.in_keys)}"


def _shown(value: Any) -> str:
    return "None; end it with `return tensordict`" if value is None else f"a {type(value).__name__}"
