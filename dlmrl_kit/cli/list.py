"""``dlmrl list``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli.common import new_console

RECIPES = ("recipe", "recipes")
"""What asks for the recipes alone."""


def list_command(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND", help="A kind such as selector, or recipes. Default: everything.", show_default=False
        ),
    ] = None,
) -> None:
    """List components and recipes.

    Example: dlmrl list selector
    """
    from dlmrl_kit.report.component_list import table_of_components, table_of_recipes

    console = new_console()
    if kind not in RECIPES:
        console.print(table_of_components(kind))
    if kind is None or kind in RECIPES:
        console.print(table_of_recipes())
