"""``dlmrl show``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dlmrl_kit.cli.common import AsJson, new_console, print_json
from dlmrl_kit.cli.completion import component_or_recipe


def show_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A component, a kind or a recipe.", autocompletion=component_or_recipe)
    ],
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a component or a kind of component, or the text of a recipe.

    Example: dlmrl show EntropyTopK
    """
    from dlmrl_kit.report.catalogue_file import catalogue
    from dlmrl_kit.report.component_list import all_recipes
    from dlmrl_kit.report.component_page import component_page, kind_page, recipe_source

    text = recipe_source(name)
    if text is not None:
        if as_json:
            print_json({"recipe": name, "text": text})
        else:
            typer.echo(text, nl=not text.endswith("\n"))
        return
    found = catalogue()
    kind = next((k for k in found.kinds if k.name == name), None)
    if kind is not None:
        members = found.of_kind(name)
        if as_json:
            print_json({**asdict(kind), "components": [member.gin_name for member in members]})
        else:
            new_console().print(kind_page(kind, members))
        return
    component = found.named(name, all_recipes())
    if as_json:
        print_json(asdict(component))
    else:
        new_console().print(component_page(component))
