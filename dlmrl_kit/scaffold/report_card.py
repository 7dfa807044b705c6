"""The report card of an installed plugin: does it go in, do its components conform, do its recipes load?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.registry import Entry, nearest, registered
from dlmrl_kit.core.version import DISTRIBUTION
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.recipe.plugin_versions import kit_requirement, version_fault
from dlmrl_kit.recipe.plugins import Plugin, load_plugins, places_of
from dlmrl_kit.testing import ConformanceError, checks_for
from dlmrl_kit.testing.subject import build


@dataclass(frozen=True)
class Mark:
    """The mark for one thing that was looked at.

    Attributes:
        what: the plugin, a component or a recipe.
        asked: what was asked of it.
        fault: what is wrong; "" if it passed.
        note: what is told if it passed.
    """

    what: str
    asked: str
    fault: str = ""
    note: str = ""


def report_card(name: str) -> Iterator[Mark]:
    """Examines a plugin, and yields its marks as they are found.

    Args:
        name: of the plugin's entry point, its package, or its distribution.

    Raises:
        UserError: no such plugin is installed.
    """
    plugin = installed_plugin(name)
    yield Mark(plugin.name, "is imported", plugin.problem, f"{plugin.origin}, module {plugin.module}")
    yield Mark(plugin.name, f"says which versions of {DISTRIBUTION} it is for", *_versions(plugin))
    for entry in registered():
        if entry.gin_name in plugin.components:
            yield from _component(entry)
    for place in places_of(plugin):
        for path in sorted((place / "recipes").glob("*.gin")) if place.is_dir() else []:
            yield Mark(path.name, "is a recipe that loads and builds", _recipe_fault(path))


def installed_plugin(name: str) -> Plugin:
    """Finds an installed plugin by the name of its entry point, its package or its distribution.

    Raises:
        UserError: there is none; with the nearest names.
    """
    found = load_plugins()
    for plugin in found:
        if name in (plugin.name, plugin.package, plugin.distribution):
            return plugin
    known = {plugin.name for plugin in found}
    hint = nearest(name, known) if known else "no plugin is installed"
    raise UserError(f"no plugin named {name!r}; {hint}")


def _versions(plugin: Plugin) -> tuple[str, str]:
    """Returns what is wrong with a distribution's requirement of the kit, and what it is."""
    needed = kit_requirement(plugin.distribution)
    if needed is None:
        return f"its dependencies leave out {DISTRIBUTION}; add it, with the versions that it was tested with", ""
    return version_fault(plugin.distribution), str(needed)


def _component(entry: Entry) -> Iterator[Mark]:
    try:
        subject = build(entry.cls)
    except ConformanceError as error:
        yield Mark(entry.name, "is built with its defaults", _first_line(error))
        return
    for check in checks_for(subject):
        try:
            check(subject)
        except ConformanceError as error:
            yield Mark(entry.name, check.name, _first_line(error))
        else:
            yield Mark(entry.name, check.name)


def _first_line(error: ConformanceError) -> str:
    return str(error).split("\n", 1)[0]


def _recipe_fault(path: Path) -> str:
    try:
        load_recipe(path).build()
    except UserError as error:
        return " ".join(str(error).split())
    return ""
