"""``dlmrl pretrain``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli.common import (
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
        str, typer.Argument(metavar="RECIPE", help="Name or path of a pre-training recipe.")
    ] = DEFAULT_PRETRAINING,
    sets: Sets = None,
    uses: Uses = None,
    out: Out = None,
    allow_imports: AllowImports = False,
) -> None:
    """Pre-train a small denoiser; with the --out of an interrupted run, go on with it.

    Example: dlmrl pretrain pretrain_sudoku4x4 --out runs/denoiser
    """
    loaded = resolved_recipe(recipe, sets, uses, allow_imports)
    print_notes(loaded)
    folder = out if out is not None and (out / "recipe.gin").is_file() else new_folder(out, loaded.name)
    from dlmrl_kit.pretraining.run import pretrain

    again = f"the same command with --out {quoted(folder)}"
    show_run(lambda observer: pretrain(loaded, folder, observer=observer), folder, again)
