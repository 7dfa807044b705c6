"""The names a recipe may use: components, base classes of components, and the root."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cached_property

import gin

from dlmrl_kit.core.errors import RegistryError
from dlmrl_kit.core.registry import Claims, Entry, Parameter, declared_slots, nearest
from dlmrl_kit.core.signatures import constructor_of
from dlmrl_kit.recipe import types
from dlmrl_kit.recipe.catalogue import components, find
from dlmrl_kit.recipe.plugins import plugin_hint
from dlmrl_kit.recipe.source import Ref, leaves_of
from dlmrl_kit.recipe.where import StatementError, Where


class _Root(Entry):
    @property
    def gin_name(self) -> str:
        return f"dlmrl_kit.{self.name}"


class Names:
    """Finds components, base classes and the root by the names that recipes write.

    A base class that is no component itself (``Sampler``) names all components that inherit from it. Slots that plugins
    declare are no parameters of the root: a recipe has those that it fills.

    Args:
        root: what the recipe builds, one of ``algorithm.ROOTS``; the parameters of its constructor are the slots.
    """

    def __init__(self, root: str = "Algorithm") -> None:
        from dlmrl_kit.algorithm.algorithm import LIST_SLOTS, ROOTS

        top = _Root(root.lower(), root, ROOTS[root], "dlmrl_kit", "", Claims())
        self.root = top.gin_name
        self.components: dict[str, Entry] = {c.gin_name: c for c in [*components(), top]}  # and plugins declare slots
        own = tuple(p.name for p in top.parameters)
        self.declared_slots = declared_slots() if _takes_any(top.cls) else {}
        self.slots = (*own, *self.declared_slots)
        many = {name for name, slot in self.declared_slots.items() if slot.many}
        self.list_slots = (LIST_SLOTS & set(own)) | many
        self.optional_slots = frozenset(p.name for p in top.parameters if p.default is None) | {*self.declared_slots}
        self._parameters: dict[str, dict[str, Parameter]] = {}
        self._by_suffix: dict[str, list[str]] = {}
        for gin_name in self.components:
            parts = gin_name.split(".")
            for start in range(len(parts)):
                self._by_suffix.setdefault(".".join(parts[start:]), []).append(gin_name)

    @cached_property
    def bases(self) -> dict[str, list[str]]:
        """The full names of the components that inherit from a base class, by the name of that class."""
        found: dict[str, list[str]] = {}
        for gin_name in self.components:
            for base in self._base_names(gin_name):
                found.setdefault(base, []).append(gin_name)
        return found

    def _base_names(self, gin_name: str) -> list[str]:
        if gin_name == self.root:  # its slots are bound under its own name only
            return []
        inherited = [c for c in self.components[gin_name].ancestors if c not in self._registered]
        # Bases from torch and the standard library (Module, ABC) are no names for a recipe.
        return list(dict.fromkeys(c.__name__ for c in inherited if c.__module__.split(".")[0] in self._packages))

    @cached_property
    def _targets(self) -> dict[str, tuple[str, ...]]:
        return {g: (g, *(b for b in self._base_names(g) if b not in self._by_suffix)) for g in self.components}

    def targets(self, gin_name: str) -> tuple[str, ...]:
        """Lists what a binding may name to be for a component: itself, then its base classes, nearest first."""
        return self._targets[gin_name]

    @cached_property
    def _registered(self) -> set[type]:
        return {c.cls for c in self.components.values()}

    @cached_property
    def _packages(self) -> set[str]:
        return {c.package for c in self.components.values()}

    def component(self, name: str, where: Where, kind: str | None = None) -> str:
        """Finds the full name of the component called ``name``, of ``kind`` if given.

        Raises:
            StatementError: no such component, or several.
        """
        matches = [name] if name in self.components else self._by_suffix.get(name, [])
        if kind is not None and len(matches) > 1:
            matches = [m for m in matches if self.components[m].kind == kind]
        if len(matches) == 1:
            return matches[0]
        if not matches and kind is None:
            raise StatementError(where, f"no component named {name!r}; {self._suggest(name)}{plugin_hint(name)}")
        try:
            return find(name, kind).gin_name
        except RegistryError as error:
            raise StatementError(where, str(error)) from None

    def target(self, name: str, where: Where) -> str:
        """Finds what a binding for ``name`` is for: the full name of a component, or the name of a base class.

        Raises:
            StatementError: no such component or base class, or several.
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
        """Returns the shortest name that means this component, which is the class name unless two share it."""
        parts = gin_name.split(".")
        suffixes = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        return next((s for s in suffixes if self._by_suffix.get(s, [gin_name]) == [gin_name]), gin_name)

    def key(self, scope: str, target: str, parameter: str) -> str:
        """Writes the left side of a binding: ``scope/Component.parameter``, or the name of a macro."""
        return f"{scope}/" * bool(scope) + (f"{self.display(target)}." if target else "") + parameter

    def parameters(self, gin_name: str) -> dict[str, Parameter]:
        """Returns the parameters of a component's constructor by name, in order."""
        if gin_name not in self._parameters:
            self._parameters[gin_name] = {p.name: p for p in self.components[gin_name].parameters}
        return self._parameters[gin_name]

    def check_parameter(self, target: str, parameter: str, where: Where) -> None:
        """Checks that a component, or at least one component with this base class, has such a parameter.

        Raises:
            StatementError: none has; with the nearest names.
        """
        if target in self.components:
            known: Iterable[str] = self.slots if target == self.root else self.parameters(target)
            if parameter in known or (target != self.root and _takes_any(self.class_of(target))):
                return
            what = f"{self.display(target)} has no parameter {parameter!r}"
        else:
            known = {p for gin_name in self.bases[target] for p in self.parameters(gin_name)}
            if parameter in known:
                return
            what = f"no component based on {target} has a parameter {parameter!r}"
        hint = nearest(parameter, known) if known else "it takes no parameters"
        raise StatementError(where, f"{what}; {hint}")

    def of_kind(self, kind: str) -> str:
        """Lists the components of a kind, for a message: ``"available selectors: A, B"``."""
        names = sorted(self.display(c.gin_name) for c in self.components.values() if c.kind == kind)
        return f"available {plural(kind)}: {', '.join(names)}"

    def class_of(self, gin_name: str) -> type:
        """Returns the class of a component."""
        return self.components[gin_name].cls

    @cached_property
    def _component_classes(self) -> set[type]:
        return {cls for c in self.components.values() for cls in (c.cls, *c.ancestors)} - {object}

    def is_component_class(self, cls: type) -> bool:
        """Tells whether a component is, or inherits from, ``cls``."""
        return cls in self._component_classes

    def fits(self, gin_name: str, parameter: str, value: object) -> bool:
        """Tells whether a value may be bound to a parameter, as far as its annotation says."""
        hints = types.hints(self.class_of(gin_name))
        return parameter not in hints or types.fits(value, hints[parameter], self)

    def type_of(self, gin_name: str, parameter: Parameter) -> str:
        """Writes the type of a parameter for a message; "" where it has no annotation."""
        return types.described(parameter.annotation, types.hints(self.class_of(gin_name)).get(parameter.name))


def _takes_any(cls: type) -> bool:
    """Tells whether a constructor takes ``**kwargs``."""
    return any(p.kind is p.VAR_KEYWORD for p in constructor_of(cls).parameters.values())


def plural(kind: str) -> str:
    """Returns the plural of a kind: ``"policies"`` of ``"policy"``."""
    if kind.endswith("y"):
        return kind[:-1] + "ies"
    return kind + ("es" if kind.endswith("s") else "s")


def required(parameter: Parameter) -> bool:
    """Tells whether a recipe must bind a parameter: it has no default, or gin's mark for that."""
    return parameter.required or parameter.default is gin.REQUIRED


def refs(value: object) -> list[Ref]:
    """Lists the references in a value that has no macros."""
    return [leaf for leaf in leaves_of(value) if isinstance(leaf, Ref)]
