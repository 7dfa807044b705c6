"""``dlmrl train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmrl_kit.cli.common import (
    DEFAULT_RECIPE,
    AcceptChanges,
    AllowImports,
    Out,
    Sets,
    Uses,
    new_folder,
    print_notes,
    quoted,
    refuse,
    resolved_recipe,
    show_run,
)


def train_command(
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
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Go on with an interrupted run; with --set Trainer.updates=N also with a finished one.",
            show_default=False,
        ),
    ] = None,
    accept_changes: AcceptChanges = False,
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
        writes = {"--out": out, "--resume": resume, "--push-to-hub": push_to_hub}
        refuse(writes, "with --dry-run: nothing is trained or written")
    if push_to_hub is not None:
        from dlmrl_kit.training.export import check_hub

        check_hub(push_to_hub)
    if resume is not None:
        changes = {"RECIPE": recipe, "--use": uses, "--out": out, "--seed": seed}
        refuse(changes, "with --resume: a run goes on with the recipe it started with")
        _resume(resume, sets or [], allow_imports, accept_changes)
        _push(resume, push_to_hub)
        return
    refuse({"--accept-changes": accept_changes or None}, "without --resume: a new run has nothing to compare with")
    bindings = [*(sets or []), *([f"Trainer.seed={seed}"] if seed is not None else [])]
    loaded = resolved_recipe(recipe or DEFAULT_RECIPE, bindings, uses, allow_imports)
    print_notes(loaded)
    if dry_run:
        from dlmrl_kit.training.dry_run import dry_run as try_out

        try_out(loaded, typer.echo)
        return
    folder = new_folder(out, loaded.name)
    from dlmrl_kit.training import train

    show_run(lambda observer: train(loaded, folder, observer=observer), folder, _command_to_resume(folder))
    _push(folder, push_to_hub)


def _resume(folder: Path, sets: list[str], allow_imports: bool, accept_changes: bool) -> None:
    from dlmrl_kit.training import resume

    options = {"allow_imports": allow_imports, "accept_changes": accept_changes}
    show_run(
        lambda observer: resume(folder, observer=observer, sets=sets, **options),
        folder,
        _command_to_resume(folder),
    )


def _command_to_resume(folder: Path) -> str:
    return f"dlmrl train --resume {quoted(folder)}"


def _push(folder: Path, repository: str | None) -> None:
    if repository is not None:
        from dlmrl_kit.training.export import push

        typer.echo(f"uploaded to {push(folder, repository)}")
