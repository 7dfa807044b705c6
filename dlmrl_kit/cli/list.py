"""``dlmrl list``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli.common import AsJson, new_console, print_json
from dlmrl_kit.cli.completion import kind_or_recipes

RECIPES = ("recipe", "recipes")
"""What asks for the recipes alone."""


def list_command(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="A kind such as selector, or recipes. Default: everything.",
            show_default=False,
            autocompletion=kind_or_recipes,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List components and recipes.

    Example: dlmrl list selector
    """
    from dlmrl_kit.report.catalogue_file import catalogue
    from dlmrl_kit.report.component_list import all_recipes, components_data, table_of_components, table_of_recipes

    with_components, with_recipes = kind not in RECIPES, kind is None or kind in RECIPES
    if as_json:
        components = components_data(catalogue(), kind) if with_components else []
        recipes = [{"name": name, "summary": text} for name, text in all_recipes().items()] if with_recipes else []
        print_json({"components": components, "recipes": recipes})
        return
    console = new_console()
    if with_components:
        console.print(table_of_components(catalogue(), kind))
    if with_recipes:
        console.print(table_of_recipes())
