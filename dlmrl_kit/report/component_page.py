"""What ``dlmrl show`` prints: all that is known of a component, or the text of a recipe."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlmrl_kit.recipe.load import recipe_files, recipes_dir
from dlmrl_kit.report.component_list import all_recipes
from dlmrl_kit.report.descriptions import Description, KeyText, KindDescription, ParameterText
from dlmrl_kit.report.tables import plain_table, words


def recipe_source(name: str) -> str | None:
    """Returns the text of a recipe that is found by name as it was written, with comments; None for any other name."""
    if name not in all_recipes():
        return None
    return recipe_files().get(name, recipes_dir() / f"{name}.gin").read_text(encoding="utf-8")


def component_page(component: Description) -> RenderableType:
    """Lays out all that is known of a component: documentation, paper, claims, parameters and keys."""
    heading = Text.assemble((component.name, "bold"), f"  {component.kind}, package {component.origin}")
    parts: list[RenderableType] = [heading, ""]
    for text in component.documentation:
        parts += [Text(text), ""]
    parts += [Text(f"{label:<8} {value}") for label, value in _facts(component) if value]
    if component.parameters:
        parts.append(_parameters(component.parameters))
    if component.keys is not None:
        parts.append(_keys(component.keys))
    return Group(*parts)


def kind_page(kind: KindDescription, components: Iterable[Description]) -> RenderableType:
    """Lays out all that is known of a kind: what it is for, where it runs, its base class and keys, its components."""
    heading = Text.assemble((kind.name, "bold"), f"  kind of component, from {kind.origin}: {kind.summary}")
    facts = [("place", kind.place), ("base", kind.base)]
    parts: list[RenderableType] = [heading, "", Text(kind.documentation), ""]
    parts += [Text(f"{label:<8} {value}") for label, value in facts]
    if kind.keys is not None:
        parts.append(_keys(kind.keys))
    table = plain_table(words("component", whole=True), words("summary"), words("from"))
    for found in components:
        table.add_row(Text(found.name, style="bold"), Text(found.summary), Text(found.origin))
    return Group(*parts, table)


def _facts(component: Description) -> list[tuple[str, str]]:
    use = f"--use {component.kind}={component.name}, or in a recipe: @{component.gin_name}()"
    return [("paper", component.paper), ("claims", component.claims), ("source", component.source), ("use", use)]


def _parameters(parameters: Iterable[ParameterText]) -> Table:
    table = plain_table(words("parameter", whole=True), words("type"), words("default"))
    for parameter in parameters:
        default = "required" if parameter.default is None else parameter.default
        table.add_row(Text(parameter.name, style="bold"), Text(parameter.type), Text(default))
    return table


def _keys(groups: dict[str, tuple[KeyText, ...]]) -> Table:
    """Returns keys under the headings of their groups, with type and meaning where the kit knows them."""
    table = plain_table(words(""), words("key"), words("type"), words("meaning"))
    for heading, keys in groups.items():
        for position, key in enumerate(keys):
            table.add_row(heading if position == 0 else "", key.key, Text(key.type), Text(key.meaning))
    return table
