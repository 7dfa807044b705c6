"""The ``dlmrl`` command. Imports nothing heavy: what a command needs is imported when it runs."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dlmrl_kit
from dlmrl_kit.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_RECIPE = "egspo_sa"
DEFAULT_PRETRAINING = "pretrain_sudoku4x4"
PIPE_WIDTH = 160
"""Columns of tables where the output is no terminal and ``COLUMNS`` is not set."""

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="BINDING", help="Set a parameter, e.g. UniformSteps.k=4. May be repeated.", show_default=False
    ),
]
Uses = Annotated[
    list[str] | None,
    typer.Option(
        "--use",
        metavar="KIND=NAME",
        help="Swap a component, e.g. selector=UniformSteps. May be repeated.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run folder. Default: runs/RECIPE-DATE-TIME.", show_default=False),
]
AllowImports = Annotated[
    bool, typer.Option("--allow-imports", help="Run the import statements of the recipe, that is, code.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]

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


def user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of commands: a ``UserError`` becomes one line on standard error and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None

    return wrapped


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
        _refuse(given, "with --dry-run: nothing is trained or written")
    if push_to_hub is not None:
        from dlmrl_kit.training.export import check_hub

        check_hub(push_to_hub)
    if resume is not None:
        _refuse_with_resume({"RECIPE": recipe, "--set": sets, "--use": uses, "--out": out, "--seed": seed})
        _resume(resume, allow_imports)
        _push(resume, push_to_hub)
        return
    from dlmrl_kit.recipe import load_recipe

    bindings = [*(sets or ()), *([f"Trainer.seed={seed}"] if seed is not None else [])]
    loaded = load_recipe(recipe or DEFAULT_RECIPE, sets=bindings, uses=uses or (), allow_imports=allow_imports)
    _print_notes(loaded)
    if dry_run:
        from dlmrl_kit.training.dry_run import dry_run as try_out

        try_out(loaded, typer.echo)
        return
    folder = _new_folder(out, loaded.name)
    from dlmrl_kit.training import train as run

    _observed(
        lambda observer: run(loaded, folder, observer=observer), folder, f"dlmrl train --resume {_quoted(folder)}"
    )
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
        _print_json(result.to_json())
        return
    from dlmrl_kit.training.console import table_of_evaluation, table_of_samples

    console = _console()
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
    from dlmrl_kit.recipe import load_recipe

    loaded = load_recipe(recipe, sets=sets or (), uses=uses or (), allow_imports=allow_imports)
    _print_notes(loaded)
    folder = out if out is not None and (out / "recipe.gin").is_file() else _new_folder(out, loaded.name)
    from dlmrl_kit.pretraining import pretrain as run

    again = f"the same command with --out {_quoted(folder)}"
    _observed(lambda observer: run(loaded, folder, observer=observer), folder, again)


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
    from dlmrl_kit import catalogue

    console = _console()
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
    from dlmrl_kit import catalogue

    text = catalogue.recipe_source(name)
    if text is not None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        _console().print(catalogue.component_page(name))


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
    from dlmrl_kit import catalogue
    from dlmrl_kit.recipe import load_recipe

    loaded = load_recipe(recipe, sets=sets or (), uses=uses or (), allow_imports=allow_imports)
    built = loaded.build()
    trains = hasattr(built, "plan")  # a pre-training recipe has no dataflow
    if as_json:
        stages = catalogue.stages(built) if trains else []
        _print_json({"recipe": loaded.name, "notes": loaded.notes, "stages": stages, "text": loaded.text()})
        return
    _print_notes(loaded)
    if trains:
        _console().print(catalogue.dataflow_page(built))
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
        _print_json(report.to_json())
        return
    from dlmrl_kit.audit.table import page

    _console().print(page(report))


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
    from dlmrl_kit.experiments.console import RichObserver, announce, page

    console = _console()
    console.stderr = as_json
    design = make_design(recipe, swaps, seeds=seeds, sets=sets or (), uses=uses or (), allow_imports=allow_imports)
    announce(design, console)
    try:
        summary = run(design, out, parallel=jobs, observer=RichObserver(console))
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command goes on", err=True)
        raise typer.Exit(1) from None
    if as_json:
        _print_json(summary.to_json())
    else:
        console.print(page(summary, out))
    if summary.failed:
        raise typer.Exit(1)


def _resume(folder: Path, allow_imports: bool) -> None:
    from dlmrl_kit.training import resume

    again = f"dlmrl train --resume {_quoted(folder)}"
    _observed(lambda observer: resume(folder, observer=observer, allow_imports=allow_imports), folder, again)


def _push(folder: Path, repo: str | None) -> None:
    if repo is not None:
        from dlmrl_kit.training.export import push

        typer.echo(f"uploaded to {push(folder, repo)}")


def _observed(run: Callable[[Any], Any], folder: Path, again: str) -> None:
    """Runs with a display; an interrupt ends it with exit code 1 and the command that goes on."""
    from dlmrl_kit.training.console import RichObserver

    try:
        with RichObserver(_console()) as observer:
            run(observer)
    except KeyboardInterrupt:
        started = (folder / "recipe.gin").is_file()
        hint = f"; go on with: {again}" if started else " before anything was written"
        typer.echo(f"\ninterrupted{hint}", err=True)
        raise typer.Exit(1) from None


def _refuse_with_resume(given: dict[str, Any]) -> None:
    _refuse(given, "with --resume: a run goes on with the recipe it started with")


def _refuse(given: dict[str, Any], why: str) -> None:
    wrong = [name for name, value in given.items() if value not in (None, [])]
    if wrong:
        raise UserError(f"{' and '.join(wrong)} {why}")


def _new_folder(out: Path | None, recipe: str) -> Path:
    """The run folder, not created yet.

    Raises:
        UserError: it exists and is not empty, or cannot be created.
    """
    stem = re.sub(r"[^\w.-]+", "_", recipe)
    folder = out if out is not None else Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot use {folder} as a run folder: {existing} is no folder that can be written to")
    if existing is folder and any(folder.iterdir()):
        is_run = (folder / "recipe.gin").is_file()
        hint = f", or go on with its run: dlmrl train --resume {_quoted(folder)}" if is_run else ""
        raise UserError(f"{folder} is not empty; choose another --out{hint}")
    return folder


def _print_notes(recipe: Any) -> None:
    for note in recipe.notes:
        typer.echo(f"note: {note}", err=True)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


if __name__ == "__main__":
    main()
