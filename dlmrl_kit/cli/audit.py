"""``dlmrl audit``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli import completion
from dlmrl_kit.cli.common import AllowImports, AsJson, Sets, Uses, new_console, print_json


def audit_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name or path of a recipe.", autocompletion=completion.recipe)
    ],
    sets: Sets = None,
    uses: Uses = None,
    problems: Annotated[int, typer.Option(min=1, help="Small random problems to measure on.")] = 4,
    group_size: Annotated[int, typer.Option(min=1, help="Completions per prompt; every group is listed.")] = 2,
    prompts_per_update: Annotated[
        int | None, typer.Option(min=1, help="Groups of a batch; by default the recipe's Trainer.prompts_per_update.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random problems.")] = 0,
    later_steps: Annotated[
        bool, typer.Option("--later-steps", help="Audit the optimiser steps after the first one on a rollout, too.")
    ] = False,
    allow_imports: AllowImports = False,
    as_json: AsJson = False,
) -> None:
    """Measure the bias and variance of a recipe's gradient exactly, and which component causes the bias.

    Lists every trajectory of small problems that stand in for the task and the policy. Nothing is trained.

    Example: dlmrl audit egspo_sa --use likelihood=StepLogProb
    """
    from dlmrl_kit.audit import audit_recipe

    report = audit_recipe(
        recipe,
        sets=sets or (),
        uses=uses or (),
        allow_imports=allow_imports,
        problems=problems,
        group_size=group_size,
        seed=seed,
        prompts_per_update=prompts_per_update,
        later_steps=later_steps,
    )
    if as_json:
        print_json(report.to_json())
        return
    from dlmrl_kit.report.audit_tables import audit_result

    new_console().print(audit_result(report))
