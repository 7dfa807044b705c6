"""``dlmrl trace``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmrl_kit.cli.common import AllowImports, Sets, Uses, check_new_file, new_console


def trace_command(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Run folder, model folder, hub id, or shipped:NAME.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe whose components are used. Default: that of the run.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Examples to take: heldout, train or pretrain.")] = "heldout",
    index: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Number of an example, from 0. May be repeated. Default: 0.", show_default=False),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Completions of each. Default: a group of training.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Default: that of the recipe's sampler.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling noise.")] = 0,
    before: Annotated[
        bool, typer.Option("--before/--no-before", help="Show a run's policy before training beside it.")
    ] = True,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("trace.html"),
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
) -> None:
    """Look at denoising trajectories: one in the terminal, all on a page.

    Example: dlmrl trace runs/my-run --index 3 --samples 4
    """
    check_new_file(out, "--out")
    from dlmrl_kit.report.trace_console import show_trace
    from dlmrl_kit.training.trace_page import write_page
    from dlmrl_kit.training.trace_path import trace_path

    traces = trace_path(
        path,
        recipe=recipe,
        split=split,
        indices=index or [0],
        samples=samples,
        temperature=temperature,
        seed=seed,
        before=before,
        sets=sets or (),
        uses=uses or (),
        allow_imports=allow_imports,
    )
    write_page(out, f"{path}: trajectories", traces)
    console = new_console()
    for trace in traces:
        if trace.prompt == traces[0].prompt:
            show_trace(console, trace)
    typer.echo(f"page: {out}")
