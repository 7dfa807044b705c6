"""The ``dlmrl`` command. Imports nothing heavy: what a command needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import dlmrl_kit
from dlmrl_kit.cli import inspect as cli_inspect
from dlmrl_kit.cli.common import (
    DEFAULT_RECIPE,
    AllowImports,
    AsJson,
    Out,
    Sets,
    Uses,
    new_console,
    new_folder,
    observed,
    print_json,
    print_notes,
    quoted,
    refuse,
    user_errors,
)

DEFAULT_PRETRAINING = "pretrain_sudoku4x4"

app = typer.Typer(
    name="dlmrl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the ``dlmrl`` command."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dlmrl_kit {dlmrl_kit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Reinforcement learning for diffusion language models, assembled from components.

    Start with: dlmrl train
    """


@app.command()
@user_errors
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help=f"Name or path of a recipe. Default: {DEFAULT_RECIPE}.", show_default=False
        ),
    ] = None,
    sets: Sets = None,
    uses: Uses = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set Trainer.seed=N.", show_default=False)] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with an interrupted run.", show_default=False)
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_ID", help="Upload the model to this repository of the hub at the end.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Report sizes, memory and forwards; try an update on a small random model."),
    ] = False,
    allow_imports: AllowImports = False,
) -> None:
    """Train a recipe.

    Example: dlmrl train egspo --use selector=UniformSteps --set UniformSteps.k=4
    """
    if dry_run:
        given = {"--out": out, "--resume": resume, "--push-to-hub": push_to_hub}
        refuse(given, "with --dry-run: nothing is trained or written")
    if push_to_hub is not None:
        from dlmrl_kit.training.export import check_hub

        check_hub(push_to_hub)
    if resume is not None:
        _refuse_with_resume({"RECIPE": recipe, "--set": sets, "--use": uses, "--out": out, "--seed": seed})
        _resume(resume, allow_imports)
        _push(resume, push_to_hub)
        return
    from dlmrl_kit.recipe.load import load_recipe

    bindings = [*(sets or ()), *([f"Trainer.seed={seed}"] if seed is not None else [])]
    loaded = load_recipe(recipe or DEFAULT_RECIPE, sets=bindings, uses=uses or (), allow_imports=allow_imports)
    print_notes(loaded)
    if dry_run:
        from dlmrl_kit.training.dry_run import dry_run as try_out

        try_out(loaded, typer.echo)
        return
    folder = new_folder(out, loaded.name)
    from dlmrl_kit.training import train as run

    observed(lambda observer: run(loaded, folder, observer=observer), folder, f"dlmrl train --resume {quoted(folder)}")
    _push(folder, push_to_hub)


@app.command("eval")
@user_errors
def evaluate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Run folder, model folder, hub id, or shipped:NAME.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe whose task and sampler are used. Default: that of the run.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Puzzles to solve: heldout, train or pretrain.")] = "heldout",
    size: Annotated[int, typer.Option(min=1, help="Number of puzzles, if the split has as many.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
    samples: Annotated[int, typer.Option(min=1, help="Completions per puzzle, for pass@k.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the sampling noise.")] = 0,
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
        sets=sets or (),
        uses=uses or (),
        allow_imports=allow_imports,
    )
    if as_json:
        print_json(result.to_json())
        return
    from dlmrl_kit.report.run_console import table_of_evaluation, table_of_samples

    console = new_console()
    console.print(table_of_evaluation(result))
    console.print(table_of_samples(result.samples))


@app.command()
@user_errors
def pretrain(
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
    from dlmrl_kit.recipe.load import load_recipe

    loaded = load_recipe(recipe, sets=sets or (), uses=uses or (), allow_imports=allow_imports)
    print_notes(loaded)
    folder = out if out is not None and (out / "recipe.gin").is_file() else new_folder(out, loaded.name)
    from dlmrl_kit.pretraining.loop import pretrain as run

    again = f"the same command with --out {quoted(folder)}"
    observed(lambda observer: run(loaded, folder, observer=observer), folder, again)


@app.command()
@user_errors
def ablate(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or path of the base recipe.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder; the same command goes on with it.")],
    swaps: Annotated[
        list[str],
        typer.Option("--swap", metavar="KIND=A,B", help="Components to try in a slot, one at a time. May be repeated."),
    ],
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each variant, with seeds 0 to N-1.")] = 3,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time. Default: one per core, at most 8; 1 with a GPU.", show_default=False),
    ] = None,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
    as_json: AsJson = False,
) -> None:
    """Compare a recipe with variants that differ in one component, over several seeds.

    Verifies that nothing else differs. May be killed at any time: the same command goes on, and repeats failed runs.

    Example: dlmrl ablate egspo --swap selector=UniformSteps,RandomSteps --seeds 3 --out ablation
    """
    from dlmrl_kit.experiments import ablate as run
    from dlmrl_kit.experiments import make_design
    from dlmrl_kit.report.ablation_console import RichObserver, announce, page

    console = new_console()
    console.stderr = as_json
    design = make_design(recipe, swaps, seeds=seeds, sets=sets or (), uses=uses or (), allow_imports=allow_imports)
    announce(design, console)
    try:
        summary = run(design, out, parallel=jobs, observer=RichObserver(console))
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command goes on", err=True)
        raise typer.Exit(1) from None
    if as_json:
        print_json(summary.to_json())
    else:
        console.print(page(summary, out))
    if summary.failed:
        raise typer.Exit(1)


app.add_typer(cli_inspect.app)  # without a name: its commands are commands of dlmrl


def _resume(folder: Path, allow_imports: bool) -> None:
    from dlmrl_kit.training import resume

    again = f"dlmrl train --resume {quoted(folder)}"
    observed(lambda observer: resume(folder, observer=observer, allow_imports=allow_imports), folder, again)


def _push(folder: Path, repo: str | None) -> None:
    if repo is not None:
        from dlmrl_kit.training.export import push

        typer.echo(f"uploaded to {push(folder, repo)}")


def _refuse_with_resume(given: dict[str, Any]) -> None:
    refuse(given, "with --resume: a run goes on with the recipe it started with")


if __name__ == "__main__":
    main()
