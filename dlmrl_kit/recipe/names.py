"""The names a recipe may use: components, base classes of components, and the root."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import gin

from dlmrl_kit.core import registry
from dlmrl_kit.core.errors import RecipeError, RegistryError
from dlmrl_kit.core.registry import Claims, Component, Parameter
from dlmrl_kit.recipe import types as gin_types
from dlmrl_kit.recipe.source import Ref, Where, leaves

ROOTS = {"Algorithm": "dlmrl_kit.algorithm.algorithm", "Pretraining": "dlmrl_kit.algorithm.algorithm"}
"""What a recipe may start from, and the module that defines it; its constructor's parameters are the slots."""


class _Root(Component):
    @property
    def gin_name(self) -> str:
        return f"dlmrl_kit.{self.name}"


class Names:
    """Registered components by full gin name, and how the names written in recipes lead to them.

    A base class that is no component itself (``Sampler``) names all components that inherit from it. ``root`` is one of
    ``ROOTS``.
    """

    def __init__(self, root: str = "Algorithm") -> None:
        from dlmrl_kit.algorithm.algorithm import LIST_SLOTS

        cls = getattr(importlib.import_module(ROOTS[root]), root)
        top = _Root(root.lower(), root, cls, "dlmrl_kit", "", Claims())
        self.root = top.gin_name
        self.slots = tuple(p.name for p in top.parameters)
        self.list_slots = LIST_SLOTS & set(self.slots)
        self.optional_slots = frozenset(p.name for p in top.parameters if p.default is None)
        self.components: dict[str, Component] = {c.gin_name: c for c in [*registry.components(), top]}
        self._parameters: dict[str, dict[str, Parameter]] = {}
        self._by_suffix: dict[str, list[str]] = {}
        for gin_name in self.components:
            parts = gin_name.split(".")
            for start in range(len(parts)):
                self._by_suffix.setdefault(".".join(parts[start:]), []).append(gin_name)

    @cached_property
    def bases(self) -> dict[str, list[str]]:
        """Base class name -> gin names of the components that inherit from a class of that name."""
        found: dict[str, list[str]] = {}
        for gin_name in self.components:
            for base in self._base_names(gin_name):
                found.setdefault(base, []).append(gin_name)
        return found

    def _base_names(self, gin_name: str) -> list[str]:
        inherited = [c for c in self.class_of(gin_name).__mro__[1:] if c not in self._registered]
        # Bases from torch and the standard library (Module, ABC) are no names for a recipe.
        return list(dict.fromkeys(c.__name__ for c in inherited if c.__module__.split(".")[0] in self._packages))

    @cached_property
    def _targets(self) -> dict[str, tuple[str, ...]]:
        return {g: (g, *(b for b in self._base_names(g) if b not in self._by_suffix)) for g in self.components}

    def targets(self, gin_name: str) -> tuple[str, ...]:
        """What bindings for a component may be bound to: itself, then its base classes, nearest first."""
        return self._targets[gin_name]

    @cached_property
    def _registered(self) -> set[type]:
        return {c.cls for c in self.components.values()}

    @cached_property
    def _packages(self) -> set[str]:
        return {c.package for c in self.components.values()}

    def component(self, name: str, where: Where, kind: str | None = None) -> str:
        """Gin name of the component called ``name``, of ``kind`` if given.

        Raises:
            RecipeError: no such component, or several.
        """
        matches = [name] if name in self.components else self._by_suffix.get(name, [])
        if kind is not None and len(matches) > 1:
            matches = [m for m in matches if self.components[m].kind == kind]
        if len(matches) == 1:
            return matches[0]
        if not matches and kind is None:
            raise RecipeError(f"{where}: no component named {name!r}; {self._suggest(name)}")
        try:
            return registry.find(name, kind).gin_name
        except RegistryError as error:
            raise RecipeError(f"{where}: {error}") from None

    def target(self, name: str, where: Where) -> str:
        """What a binding for ``name`` is bound to: a component's gin name, or the name of a base class.

        Raises:
            RecipeError: no such component or base class, or several.
        """
        if name in self.bases and name not in self._by_suffix:
            return name
        return self.component(name, where)

    def _suggest(self, name: str) -> str:
        known = {c.name for c in self.components.values()} | set(self.bases)
        lowered = {n.lower(): n for n in sorted(known)}
        close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
        if not close:
            return "`dlmrl list` shows all components"
        return f"did you mean {' or '.join(repr(c) for c in close)}? `dlmrl list` shows all components"

    def display(self, gin_name: str) -> str:
        """The shortest name that means this component: the class name unless two share it."""
        parts = gin_name.split(".")
        suffixes = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        return next((s for s in suffixes if self._by_suffix.get(s, [gin_name]) == [gin_name]), gin_name)

    def key(self, scope: str, target: str, parameter: str) -> str:
        """How a binding is written: ``scope/Component.parameter``, or the name of a macro."""
        return f"{scope}/" * bool(scope) + (f"{self.display(target)}." if target else "") + parameter

    def parameters(self, gin_name: str) -> dict[str, Parameter]:
        """Constructor parameters in order."""
        if gin_name not in self._parameters:
            self._parameters[gin_name] = {p.name: p for p in self.components[gin_name].parameters}
        return self._parameters[gin_name]

    def takes_any(self, gin_name: str) -> bool:
        """Whether the constructor has ``**kwargs``."""
        parameters = inspect.signature(self.components[gin_name].cls).parameters.values()
        return any(p.kind is p.VAR_KEYWORD for p in parameters)

    def check_parameter(self, target: str, parameter: str, where: Where) -> None:
        """Checks that a component, or at least one component with this base class, has such a parameter.

        Raises:
            RecipeError: none has; with the nearest names.
        """
        if target in self.components:
            known: Iterable[str] = self.parameters(target)
            if parameter in known or self.takes_any(target):
                return
            what = f"{self.display(target)} has no parameter {parameter!r}"
        else:
            known = {p for gin_name in self.bases[target] for p in self.parameters(gin_name)}
            if parameter in known:
                return
            what = f"no component based on {target} has a parameter {parameter!r}"
        hint = registry.nearest(parameter, known) if known else "it takes no parameters"
        raise RecipeError(f"{where}: {what}; {hint}")

    def of_kind(self, kind: str) -> str:
        """Text that lists the components of a kind: ``"available selectors: A, B"``."""
        names = sorted(self.display(c.gin_name) for c in self.components.values() if c.kind == kind)
        return f"available {plural(kind)}: {', '.join(names)}"

    def class_of(self, gin_name: str) -> type:
        """The class of a component."""
        return self.components[gin_name].cls

    @cached_property
    def _component_classes(self) -> set[type]:
        return {cls for c in self.components.values() for cls in c.cls.__mro__} - {object}

    def is_component_class(self, cls: type) -> bool:
        """Whether a component is, or inherits from, ``cls``."""
        return cls in self._component_classes

    def fits(self, gin_name: str, parameter: str, value: Any) -> bool:
        """Whether a value may be bound to a parameter, as far as its annotation says."""
        hints = gin_types.hints(self.class_of(gin_name))
        return parameter not in hints or gin_types.fits(value, hints[parameter], self)


def plural(kind: str) -> str:
    """``"policy"`` -> ``"policies"``."""
    if kind.endswith("y"):
        return kind[:-1] + "ies"
    return kind + ("es" if kind.endswith("s") else "s")


def required(parameter: Parameter) -> bool:
    """Whether a parameter has no default; gin marks those of a root in its own way."""
    return parameter.required or parameter.default is gin.REQUIRED


def refs(value: Any) -> list[Ref]:
    """The references in a value without macros."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Ref)]
