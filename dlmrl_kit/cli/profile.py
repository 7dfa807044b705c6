"""``dlmrl profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmrl_kit.cli import completion
from dlmrl_kit.cli.common import (
    DEFAULT_RECIPE,
    AllowImports,
    AsJson,
    Sets,
    Uses,
    check_new_file,
    new_console,
    print_json,
    print_notes,
    resolved_recipe,
)


def profile_command(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="Name or path of a training recipe.", autocompletion=completion.recipe),
    ] = DEFAULT_RECIPE,
    updates: Annotated[int, typer.Option(min=1, metavar="N", help="Updates to measure, after one unmeasured.")] = 5,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a Chrome trace of the measured updates (.json or .json.gz).",
            show_default=False,
        ),
    ] = None,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
    as_json: AsJson = False,
) -> None:
    """Show where the time of a training update goes: seconds by phase, each second counted once.

    Evaluations, checkpoints and loggers are left out, and nothing is kept.

    Example: dlmrl profile egspo_sa --updates 5
    """
    if trace is not None:
        check_new_file(trace, "--trace")
    loaded = resolved_recipe(recipe, sets, uses, allow_imports)
    print_notes(loaded)
    from dlmrl_kit.training.profiling import profile, report

    result = report(loaded.name, updates, profile(loaded, updates, trace=trace))
    if as_json:
        print_json(result)
        return
    from dlmrl_kit.report.profile_table import table_of_profile

    new_console().print(table_of_profile(result))
