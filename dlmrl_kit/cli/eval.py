"""``dlmrl eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmrl_kit.cli import completion
from dlmrl_kit.cli.common import AllowImports, AsJson, Sets, Uses, listed, new_console, print_json, refuse, valued
from dlmrl_kit.core.errors import UserError

if TYPE_CHECKING:
    from dlmrl_kit.experiments.evaluation_grid import Grid


def eval_command(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Run folder, model folder, hub id, or shipped:NAME.")
    ],
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B", help="Recipes whose task and sampler are used. Default: that of the run.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Evaluate every combination of models, recipes, tasks, samplers, lengths, steps and settings, and "
            "keep all completions there; the same command goes on.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="With --out: tasks that replace that of the recipe.", show_default=False),
    ] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="With --out: samplers that replace that of the recipe.", show_default=False),
    ] = None,
    length: Annotated[
        list[str] | None, typer.Option(metavar="N,M", help="With --out: lengths of completions.", show_default=False)
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,M",
            help="With --out: denoising steps of a completion, or a share of --length: 1/2.",
            show_default=False,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B",
            help="With --out: values of a setting of the sampler, e.g. LowConfidence.tokens_per_step=1,2,4. May be "
            "repeated.",
            show_default=False,
            autocompletion=completion.binding,
        ),
    ] = None,
    check_batch: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="With --out: examples to decode again one at a time, to see whether the batch size changes "
            "completions. Default: 8.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Examples to solve: heldout, train or pretrain.")] = "heldout",
    size: Annotated[int, typer.Option(min=1, help="Number of examples, if the split has as many.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
    samples: Annotated[int, typer.Option(min=1, help="Completions per example, for pass@k.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the sampling noise.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Completions decoded at once. Default: Trainer.rollout_batch_size of the recipe, else 256.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16. Default: Trainer.precision of the recipe.", show_default=False),
    ] = None,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of runs or models.

    Example: dlmrl eval runs/my-run --temperature 0.9 --samples 8

    A grid: dlmrl eval runs/a runs/b --length 128,256 --steps 1/2 --out evaluation

    Accuracy against forwards: dlmrl eval runs/a runs/b --vary Sampler.tokens_per_step=1,2,4 --out curve
    """
    from dlmrl_kit.experiments.evaluation_grid import Grid

    grid = Grid(
        models=paths,
        recipes=listed(recipe),
        tasks=listed(task),
        samplers=listed(sampler),
        lengths=[_whole(text) for text in listed(length)],
        steps=listed(steps),
        vary=valued(vary, "--vary", "LowConfidence.tokens_per_step=1,2,4"),
        split=split,
        size=size,
        temperature=temperature,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        sets=sets or (),
        uses=uses or (),
        allow_imports=allow_imports,
    )
    if out is not None:
        _evaluate_grid(grid, out, check_batch, as_json)
        return
    grid_only = {"--task": task, "--sampler": sampler, "--length": length, "--steps": steps, "--vary": vary}
    refuse({**grid_only, "--check-batch": check_batch}, "without --out DIR: it belongs to a grid, which is kept there")
    if len(grid.models) > 1 or len(grid.recipes) > 1:
        raise UserError("several models or recipes are a grid: give --out DIR, where it is kept")
    _evaluate_one(grid, as_json)


def _evaluate_grid(grid: Grid, out: Path, checked: int | None, as_json: bool) -> None:
    from dlmrl_kit.experiments.evaluation_files import write_results
    from dlmrl_kit.experiments.evaluation_grid import plan_cells
    from dlmrl_kit.experiments.evaluation_results import collect
    from dlmrl_kit.experiments.evaluation_runs import CHECKED, run_cells
    from dlmrl_kit.report.grid_console import RichGridObserver, grid_result

    console = new_console(stderr=as_json)
    cells = plan_cells(grid)
    left_out = {(cell.facts["sampler"], key): None for cell in cells for key in cell.left_out}
    for sampler, key in left_out:
        typer.echo(f"note: --vary {key} concerns nothing of {sampler}, and is left out there", err=True)
    observer = RichGridObserver(console)
    try:
        found = run_cells(cells, out, checked=CHECKED if checked is None else checked, observer=observer)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command goes on", err=True)
        raise typer.Exit(1) from None
    results = collect(cells, found)
    write_results(results, out)
    if as_json:
        print_json(results.to_json())
    else:
        console.print(grid_result(results, out))


def _evaluate_one(grid: Grid, as_json: bool) -> None:
    from dlmrl_kit.training import evaluate_path

    result = evaluate_path(
        grid.models[0],
        recipe=grid.recipes[0] if grid.recipes else None,
        split=grid.split,
        size=grid.size,
        temperature=grid.temperature,
        samples_per_prompt=grid.samples,
        seed=grid.seed,
        batch_size=grid.batch_size,
        precision=grid.precision,
        sets=grid.sets,
        uses=grid.uses,
        allow_imports=grid.allow_imports,
    )
    if as_json:
        print_json(result.to_json())
        return
    from dlmrl_kit.report.evaluation_tables import table_of_evaluation, table_of_samples

    console = new_console()
    console.print(table_of_evaluation(result))
    console.print(table_of_samples(result.samples))


def _whole(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or int(text) < 1:
        raise UserError(f"--length {text}: expected a whole number, at least 1")
    return int(text)
