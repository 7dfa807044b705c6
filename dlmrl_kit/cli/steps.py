"""``dlmrl steps``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmrl_kit.cli.common import AllowImports, AsJson, Sets, Uses, listed, new_console, print_json


def steps_command(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Run folder, model folder, hub id, or shipped:NAME.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE", help="Whose gradient is measured. Default: that of the run.", show_default=False
        ),
    ] = None,
    selectors: Annotated[
        list[str] | None,
        typer.Option(
            "--selector",
            metavar="A,B",
            help="Selectors that are asked, too, which steps they would keep.",
            show_default=False,
        ),
    ] = None,
    batches: Annotated[int, typer.Option(min=2, metavar="N", help="Independent batches, each that of an update.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write CSV files and the figure there.", show_default=False),
    ] = None,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
    as_json: AsJson = False,
) -> None:
    """Measure what each denoising step contributes to a recipe's gradient: norm, signal and noise, and who keeps it.

    Trains nothing.

    Example: dlmrl steps shipped:sudoku4x4 --recipe egspo --selector UniformSteps,RandomSteps --out steps
    """
    from dlmrl_kit.experiments.step_files import write_steps
    from dlmrl_kit.experiments.step_measures import measure_steps

    report = measure_steps(
        path,
        recipe=recipe,
        selectors=listed(selectors),
        batches=batches,
        sets=sets or (),
        uses=uses or (),
        allow_imports=allow_imports,
    )
    written = [] if out is None else write_steps(report, out)
    if as_json:
        print_json(report.to_json())
        return
    from dlmrl_kit.report.step_table import table_of_steps

    console = new_console()
    console.print(table_of_steps(report))
    for file in written:
        typer.echo(file)
