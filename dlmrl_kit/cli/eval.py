"""``dlmrl eval``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli.common import AllowImports, AsJson, Sets, Uses, new_console, print_json


def eval_command(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Run folder, model folder, hub id, or shipped:NAME.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe whose task and sampler are used. Default: that of the run.", show_default=False),
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
    """Measure the accuracy of a run or model.

    Example: dlmrl eval runs/my-run --temperature 0.9 --samples 8
    """
    from dlmrl_kit.training import evaluate_path

    result = evaluate_path(
        path,
        recipe=recipe,
        split=split,
        size=size,
        temperature=temperature,
        samples_per_prompt=samples,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        sets=sets or (),
        uses=uses or (),
        allow_imports=allow_imports,
    )
    if as_json:
        print_json(result.to_json())
        return
    from dlmrl_kit.report.evaluation_tables import table_of_evaluation, table_of_samples

    console = new_console()
    console.print(table_of_evaluation(result))
    console.print(table_of_samples(result.samples))
