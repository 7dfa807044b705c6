"""``dlmrl pretrain``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli import completion
from dlmrl_kit.cli.common import (
    AcceptChanges,
    AllowImports,
    Out,
    Sets,
    Uses,
    new_folder,
    print_notes,
    quoted,
    resolved_recipe,
    show_run,
)

DEFAULT_PRETRAINING = "pretrain_sudoku4x4"


def pretrain_command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="Name or path of a pre-training recipe.", autocompletion=completion.recipe
        ),
    ] = DEFAULT_PRETRAINING,
    sets: Sets = None,
    uses: Uses = None,
    out: Out = None,
    accept_changes: AcceptChanges = False,
    allow_imports: AllowImports = False,
) -> None:
    """Pre-train a small denoiser; with the --out of an interrupted run, go on with it.

    Example: dlmrl pretrain pretrain_sudoku4x4 --out runs/denoiser
    """
    loaded = resolved_recipe(recipe, sets, uses, allow_imports)
    print_notes(loaded)
    from dlmrl_kit.core.run_folder import holds_run

    folder = out if out is not None and holds_run(out) else new_folder(out, loaded.name)
    from dlmrl_kit.pretraining.run import pretrain

    again = f"the same command with --out {quoted(folder)}"
    show_run(lambda observer: pretrain(loaded, folder, observer=observer, accept_changes=accept_changes), folder, again)
