"""``dlmrl check``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli.common import (
    AllowImports,
    AsJson,
    Sets,
    Uses,
    new_console,
    print_json,
    print_notes,
    resolved_recipe,
)


def check_command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or path of a recipe.")],
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
    as_json: AsJson = False,
) -> None:
    """Load and build a recipe; show the order of its components, what each reads and writes, and every parameter.

    Example: dlmrl check egspo --use advantage=LeaveOneOut
    """
    from dlmrl_kit.algorithm.algorithm import Algorithm
    from dlmrl_kit.report.dataflow_page import dataflow_json, dataflow_page

    loaded = resolved_recipe(recipe, sets, uses, allow_imports)
    built = loaded.build()
    algorithm = built if isinstance(built, Algorithm) else None  # a pre-training recipe has no dataflow
    if as_json:
        stages = [] if algorithm is None else dataflow_json(algorithm)
        print_json({"recipe": loaded.name, "notes": loaded.notes, "stages": stages, "text": loaded.text()})
        return
    print_notes(loaded)
    if algorithm is not None:
        new_console().print(dataflow_page(algorithm))
    typer.echo()
    typer.echo(loaded.text())
    typer.echo(f"{loaded.name}: ok", err=True)
