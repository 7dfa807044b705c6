"""``dlmrl show``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli.common import new_console


def show_command(name: Annotated[str, typer.Argument(metavar="NAME", help="A component or a recipe.")]) -> None:
    """Show all that is known of a component, or the text of a recipe.

    Example: dlmrl show EntropyTopK
    """
    from dlmrl_kit.report.component_page import component_page, recipe_source

    text = recipe_source(name)
    if text is not None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        new_console().print(component_page(name))
