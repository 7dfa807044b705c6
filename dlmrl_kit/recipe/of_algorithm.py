"""Writes the recipe of an algorithm that was built in Python, so that its run can be resumed, evaluated and traced.

The recipe holds the settings of the components: what their constructors were given, or the attribute of that name where
they keep one, as that may have been changed. What it builds are new components, without modules that others trained.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dlmrl_kit.algorithm.algorithm import SLOTS, Algorithm
from dlmrl_kit.algorithm.bases import BASE_CLASSES, check_kinds
from dlmrl_kit.core.component import settings
from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.registry import KINDS, Entry
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.core.version import PACKAGE
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.recipe.names import Names
from dlmrl_kit.recipe.plugins import load_plugins
from dlmrl_kit.recipe.resolve import resolve_recipe
from dlmrl_kit.recipe.source import Binding, Ref, format_value
from dlmrl_kit.recipe.table import BindingTable
from dlmrl_kit.recipe.where import Where

BUILT = "Algorithm"
"""What errors name in place of a recipe's file."""


def recipe_of(algorithm: Algorithm, name: str = "algorithm") -> Recipe:
    """Returns the recipe that builds an algorithm, with every setting bound.

    A component of a module that is no plugin gives the recipe an ``import`` statement, which commands run with
    ``--allow-imports``. One that is defined in a notebook or in the script that runs has no module to import: a note
    of the recipe says so.

    Args:
        algorithm: is not changed.
        name: of the recipe.

    Raises:
        RecipeError: a recipe cannot hold the algorithm, as a component is not registered, or a setting is no number,
            text, list, tuple, dictionary or component; or a component is of another kind than its slot.
    """
    fillings = {
        **algorithm.fillings,
        "task": algorithm.task,
        "policy": algorithm.policy,
        "trainer": algorithm.trainer,
        "collector": algorithm.collector,
        "logger": algorithm.loggers,
    }
    check_kinds(fillings)
    names = Names()
    writer = _Writer(names)
    for slot in (*SLOTS, *algorithm.declared):
        writer.bind("", names.root, slot, _as_written(fillings[slot]))
    table = BindingTable(names, BUILT)
    for binding in writer.bindings:
        table.add(binding)
    blocks, _ = resolve_recipe(table)
    imports, notes = _how_to_find(dict.fromkeys(block.cls for block in blocks[1:]))
    return Recipe(name, Path("an algorithm built in Python"), blocks, notes, imports=imports)


def _as_written(filling: object) -> object:
    """Returns what fills a slot as recipes write it: a list of one or none without brackets."""
    return next(iter(filling), None) if isinstance(filling, list) and len(filling) < 2 else filling


class _InPython(Where):
    """The place of what was built in Python, which has no line."""

    def __str__(self) -> str:
        return self.source


class _Writer:
    """Collects the bindings of components, and of those that they hold.

    Args:
        names: knows the components.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.entries: dict[type, Entry] = {entry.cls: entry for entry in names.components.values()}
        self.bindings: list[Binding] = []
        self.written: dict[str, int] = {}

    def bind(self, scope: str, gin_name: str, parameter: str, value: object) -> None:
        """Adds the binding of a parameter, and before it those of the components in its value."""
        key = self.names.key(scope, gin_name, parameter)
        plain = self._plain(key, value, scope)
        self.bindings.append(Binding(scope, gin_name, parameter, plain, _InPython(BUILT, 0)))

    def _plain(self, key: str, value: object, scope: str) -> object:
        """Returns a value as a recipe holds it, with references in place of components."""
        if isinstance(value, tuple(BASE_CLASSES.values())):
            return self._reference(key, value, scope)
        if isinstance(value, list | tuple):
            return type(value)([self._plain(key, part, scope) for part in value])
        if isinstance(value, dict):
            return {name: self._plain(key, part, scope) for name, part in value.items()}
        plain = str(value) if isinstance(value, Path) else value
        try:
            format_value(plain)
        except ValueError:
            raise RecipeError(
                f"{key} is {clipped(repr(value))}, which no recipe can hold, and a run folder holds its recipe; give "
                "numbers, texts, lists and components, or take updates by hand (docs/python.md)"
            ) from None
        return plain

    def _reference(self, key: str, component: object, outer: str) -> Ref:
        cls = type(component)
        if cls not in self.entries:
            raise RecipeError(
                f"{key}: {cls.__name__} is not registered, so that no recipe can name it, and a run folder holds its "
                f'recipe; write @register("{_kind(component)}") above the class, or take updates by hand '
                "(docs/python.md)"
            )
        gin_name = self.entries[cls].gin_name
        number = self.written[gin_name] = self.written.get(gin_name, 0) + 1
        # Each instance has bindings of its own: the second one of a class, and all that it holds, in a scope.
        scope = f"{cls.__name__}_{number}" if number > 1 or outer else ""
        for parameter, value in _settings(component).items():
            self.bind(scope, gin_name, parameter, value)
        return Ref(scope, gin_name, True)


def _settings(component: object) -> dict[str, object]:
    """Returns the parameters of a component that have been given, by name: as it keeps them, else as it got them."""
    given = component.constructed_with if isinstance(component, Dependent) else {}
    return {**given, **settings(component)}


def _kind(component: object) -> str:
    """Returns the kind of an unregistered component, by its base class; the most special one that fits."""
    fitting = [kind for kind in KINDS if isinstance(component, BASE_CLASSES[kind])]
    return max(fitting, key=lambda kind: len(BASE_CLASSES[kind].__mro__))


def _how_to_find(classes: dict[type, None]) -> tuple[tuple[str, ...], list[str]]:
    """Returns the import statements by which other processes find classes, and notes on those that they cannot find."""
    known = {PACKAGE, *(plugin.package for plugin in load_plugins())}
    imports, notes = list[str](), list[str]()
    for cls in classes:
        module = cls.__module__
        if module.split(".", 1)[0] in known:
            continue
        if module != "__main__" and importlib.util.find_spec(module) is not None:
            imports.append(f"import {module}")
            continue
        notes.append(
            f"{cls.__name__} is defined in this session alone, where the run can be resumed; put the class into a "
            "module, so that dlmrl eval, trace and train --resume find it"
        )
    return tuple(dict.fromkeys(imports)), notes
