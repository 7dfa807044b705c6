"""``dlmrl check``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmrl_kit.cli import completion
from dlmrl_kit.cli.common import (
    AllowImports,
    AsJson,
    Sets,
    Uses,
    new_console,
    print_error,
    print_json,
    print_notes,
    refuse,
    resolved_recipe,
)
from dlmrl_kit.core.errors import UserError

if TYPE_CHECKING:
    from dlmrl_kit.recipe.load import Recipe

SECONDS = 0.3
"""How long ``--watch`` waits before it looks at the files again."""


def check_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name or path of a recipe.", autocompletion=completion.recipe)
    ],
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Check again whenever the recipe is saved, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Load and build a recipe; show the order of its components, what each reads and writes, and every parameter.

    Example: dlmrl check egspo --use advantage=LeaveOneOut
    """
    if not watch:
        _show(resolved_recipe(recipe, sets, uses, allow_imports), as_json)
        return
    refuse({"--json": as_json or None}, "prints one check; leave out --watch")
    files: Iterable[Path] = [Path(recipe)]
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            # Looked at before they are read: what is saved meanwhile is read again.
            seen = _times([*files, *Path(recipe).parent.glob("*.gin")])
            try:
                loaded = resolved_recipe(recipe, sets, uses, allow_imports)
                files = loaded.files
                _show(loaded, as_json=False)
            except UserError as error:
                print_error(error)
            seen = {**_times(files), **seen}
            typer.echo(f"watching {len(seen)} files; Ctrl-C ends", err=True)
            while _times(seen) == seen:
                time.sleep(SECONDS)


def _show(loaded: Recipe, as_json: bool) -> None:
    from dlmrl_kit.algorithm.algorithm import Algorithm
    from dlmrl_kit.report.dataflow_page import dataflow_json, dataflow_page

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


def _times(files: Iterable[Path]) -> dict[Path, int]:
    """Returns when each file was written; -1 for one that is not there, as an editor may be replacing it."""
    found = {}
    for file in files:
        try:
            found[file] = file.stat().st_mtime_ns
        except OSError:
            found[file] = -1
    return found
