"""The commands of ``dlmrl`` that show or measure something and keep nothing: list, show, check, audit, profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmrl_kit.cli.common import (
    DEFAULT_RECIPE,
    AllowImports,
    AsJson,
    Sets,
    Uses,
    new_console,
    new_file,
    print_json,
    print_notes,
    user_errors,
)

app = typer.Typer()


@app.command("list")
@user_errors
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND", help="A kind such as selector, or recipes. Default: everything.", show_default=False
        ),
    ] = None,
) -> None:
    """List components and recipes.

    Example: dlmrl list selector
    """
    from dlmrl_kit.report import catalogue

    console = new_console()
    if kind not in ("recipe", catalogue.RECIPES):
        console.print(catalogue.table_of_components(kind))
    if kind in (None, "recipe", catalogue.RECIPES):
        console.print(catalogue.table_of_recipes())


@app.command()
@user_errors
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="A component or a recipe.")]) -> None:
    """Show all that is known of a component, or the text of a recipe.

    Example: dlmrl show EntropyTopK
    """
    from dlmrl_kit.report import catalogue

    text = catalogue.recipe_source(name)
    if text is not None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        new_console().print(catalogue.component_page(name))


@app.command()
@user_errors
def check(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or path of a recipe.")],
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
    as_json: AsJson = False,
) -> None:
    """Load and build a recipe; show the order of its components, what each reads and writes, and every parameter.

    Example: dlmrl check egspo --use advantage=LeaveOneOut
    """
    from dlmrl_kit.recipe.load import load_recipe
    from dlmrl_kit.report import catalogue

    loaded = load_recipe(recipe, sets=sets or (), uses=uses or (), allow_imports=allow_imports)
    built = loaded.build()
    trains = hasattr(built, "plan")  # a pre-training recipe has no dataflow
    if as_json:
        stages = catalogue.stages(built) if trains else []
        print_json({"recipe": loaded.name, "notes": loaded.notes, "stages": stages, "text": loaded.text()})
        return
    print_notes(loaded)
    if trains:
        new_console().print(catalogue.dataflow_page(built))
    typer.echo()
    typer.echo(loaded.text())
    typer.echo(f"{loaded.name}: ok", err=True)


@app.command()
@user_errors
def audit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or path of a recipe.")],
    sets: Sets = None,
    uses: Uses = None,
    problems: Annotated[int, typer.Option(min=1, help="Small random problems to measure on.")] = 4,
    group_size: Annotated[int, typer.Option(min=1, help="Completions per prompt; every group is listed.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the random problems.")] = 0,
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
    )
    if as_json:
        print_json(report.to_json())
        return
    from dlmrl_kit.report.audit_tables import page

    new_console().print(page(report))


@app.command()
@user_errors
def profile(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name or path of a training recipe.")
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
    from dlmrl_kit.recipe.load import load_recipe

    if trace is not None:
        new_file(trace, "--trace")
    loaded = load_recipe(recipe, sets=sets or (), uses=uses or (), allow_imports=allow_imports)
    print_notes(loaded)
    from dlmrl_kit.training.profiling import profile as run
    from dlmrl_kit.training.profiling import report

    result = report(loaded.name, updates, run(loaded, updates, trace=trace))
    if as_json:
        print_json(result)
        return
    from dlmrl_kit.report.run_console import table_of_profile

    new_console().print(table_of_profile(result))
