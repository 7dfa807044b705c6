"""What ``dlmrl list`` prints: components, plugins and recipes as tables, or as data."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlmrl_kit.recipe.load import base_recipe_names, recipe_names
from dlmrl_kit.recipe.plugins import OFF_SWITCH, Plugin, disabled
from dlmrl_kit.report.catalogue_file import Catalogue
from dlmrl_kit.report.tables import plain_table, words


def table_of_components(catalogue: Catalogue, kind: str | None = None) -> RenderableType:
    """Returns a table of the registered components and where they come from, and one of the plugins if there are any.

    Args:
        catalogue: the components.
        kind: a kind, or the name of its folder (``selectors``); None for all. With a kind, only those plugins are shown
            of which something was skipped.

    Raises:
        RegistryError: there is no such kind.
    """
    table = plain_table(words("kind", whole=True), words("name", whole=True), words("summary"), words("from"))
    for found in catalogue.of_kind(kind):
        table.add_row(found.kind, Text(found.name, style="bold"), Text(found.summary), Text(found.origin))
    if disabled():
        return Group(table, Text(f"Plugins are turned off: {OFF_SWITCH} is set."))
    shown = [plugin for plugin in catalogue.plugins if plugin.problem or plugin.skipped or kind is None]
    return Group(table, table_of_plugins(shown)) if shown else table


def components_data(catalogue: Catalogue, kind: str | None = None) -> list[dict[str, str]]:
    """Returns what ``table_of_components`` shows of the components, as data."""
    return [
        {"kind": c.kind, "name": c.name, "gin_name": c.gin_name, "summary": c.summary, "from": c.origin}
        for c in catalogue.of_kind(kind)
    ]


def table_of_plugins(found: Iterable[Plugin]) -> Table:
    """Returns a table of plugins, with what each registered or why it was skipped."""
    table = plain_table(words("plugin", whole=True), words("distribution"), words("module"), words("components"))
    for plugin in found:
        names = ", ".join(name.rsplit(".", 1)[1] for name in plugin.components)
        state = Text(f"skipped: {plugin.problem}", style="red") if plugin.problem else Text(names)
        for part in plugin.skipped:
            state.append(f"\nskipped: {part.what}: {part.problem}", style="red")
        table.add_row(Text(plugin.name, style="bold"), Text(plugin.origin), Text(plugin.module), state)
    return table


def table_of_recipes() -> Table:
    """Returns a table of the kit's recipes with their headlines, then of those that others include."""
    table = plain_table(words("recipe", whole=True), words("summary"))
    for name, summary in all_recipes().items():
        table.add_row(Text(name, style="bold"), Text(summary))
    return table


def all_recipes() -> dict[str, str]:
    """Returns the headlines of the kit's recipes by name, those to include (``base/egspo``) last."""
    return {**recipe_names(), **base_recipe_names()}
