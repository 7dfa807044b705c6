"""``dlmrl ablate``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli import completion
from dlmrl_kit.cli.common import (
    AllowImports,
    AsJson,
    ExperimentOut,
    Jobs,
    Sets,
    Uses,
    interruptible,
    new_console,
    print_json,
)


def ablate_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name or path of the base recipe.", autocompletion=completion.recipe)
    ],
    out: ExperimentOut,
    swaps: Annotated[
        list[str],
        typer.Option("--swap", metavar="KIND=A,B", help="Components to try in a slot, one at a time. May be repeated."),
    ],
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each variant, with seeds 0 to N-1.")] = 3,
    jobs: Jobs = None,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
    as_json: AsJson = False,
) -> None:
    """Compare a recipe with variants that differ in one component, over several seeds.

    Verifies that nothing else differs. May be killed at any time: the same command goes on, and repeats failed runs.

    Example: dlmrl ablate egspo --swap selector=UniformSteps,RandomSteps --seeds 3 --out ablation
    """
    from dlmrl_kit.experiments import ablate, make_design
    from dlmrl_kit.experiments.ablation import HOLDS
    from dlmrl_kit.recipe.provenance import check
    from dlmrl_kit.report.ablation_console import RichAblationObserver, announce
    from dlmrl_kit.report.ablation_tables import ablation_result
    from dlmrl_kit.report.run_console import LogRunObserver

    console = new_console(stderr=as_json)
    check(out / HOLDS.file)  # before a component that is gone is looked for
    design = make_design(recipe, swaps, seeds=seeds, sets=sets or (), uses=uses or (), allow_imports=allow_imports)
    announce(design, console)
    observer = RichAblationObserver(console)
    with interruptible():
        summary = ablate(design, out, parallel=jobs, observer=observer, run_observer=LogRunObserver)
    if as_json:
        print_json(summary.to_json())
    else:
        console.print(ablation_result(summary, out))
    if summary.failed:
        raise typer.Exit(1)
