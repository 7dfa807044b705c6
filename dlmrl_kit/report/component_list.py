"""What ``dlmrl list`` prints: components, plugins and recipes as tables."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlmrl_kit.core.registry import KINDS
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.recipe.load import recipe_names
from dlmrl_kit.recipe.plugins import OFF_SWITCH, Plugin, disabled, load_plugins, origin
from dlmrl_kit.report.tables import plain_table, words


def table_of_components(kind: str | None = None) -> RenderableType:
    """Returns a table of the registered components and where they come from, and one of the plugins if there are any.

    Args:
        kind: a kind, or the name of its folder (``selectors``); None for all. With a kind, only those plugins are shown
            that were skipped.

    Raises:
        RegistryError: there is no such kind.
    """
    folders = {k.folder: k.name for k in KINDS.values()}
    table = plain_table(words("kind", whole=True), words("name", whole=True), words("summary"), words("from"))
    for entry in components(kind if kind in KINDS else folders.get(kind or "", kind)):
        table.add_row(entry.kind, Text(entry.name, style="bold"), Text(entry.summary), Text(origin(entry)))
    if disabled():
        return Group(table, Text(f"Plugins are turned off: {OFF_SWITCH} is set."))
    found = [plugin for plugin in load_plugins() if plugin.problem or kind is None]
    return Group(table, table_of_plugins(found)) if found else table


def table_of_plugins(found: Iterable[Plugin]) -> Table:
    """Returns a table of plugins, with what each registered or why it was skipped."""
    table = plain_table(words("plugin", whole=True), words("distribution"), words("module"), words("components"))
    for plugin in found:
        names = ", ".join(name.rsplit(".", 1)[1] for name in plugin.components)
        state = Text(f"skipped: {plugin.problem}", style="red") if plugin.problem else Text(names)
        table.add_row(Text(plugin.name, style="bold"), Text(plugin.origin), Text(plugin.module), state)
    return table


def table_of_recipes() -> Table:
    """Returns a table of the kit's recipes with their headlines."""
    table = plain_table(words("recipe", whole=True), words("summary"))
    for name, summary in recipe_names().items():
        table.add_row(Text(name, style="bold"), Text(summary))
    return table
