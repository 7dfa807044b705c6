"""What the commands of ``dlmrl`` share: options, one-line errors, new folders and files, output."""

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

from dlmrl_kit.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_RECIPE = "egspo_sa"
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


def observed(run: Callable[[Any], Any], folder: Path, again: str) -> None:
    """Runs with a display; an interrupt ends it with exit code 1 and the command that goes on."""
    from dlmrl_kit.report.run_console import RichObserver

    try:
        with RichObserver(new_console()) as observer:
            run(observer)
    except KeyboardInterrupt:
        started = (folder / "recipe.gin").is_file()
        hint = f"; go on with: {again}" if started else " before anything was written"
        typer.echo(f"\ninterrupted{hint}", err=True)
        raise typer.Exit(1) from None


def refuse(given: dict[str, Any], why: str) -> None:
    """Raises a ``UserError`` that names the options that were given, if any were."""
    wrong = [name for name, value in given.items() if value not in (None, [])]
    if wrong:
        raise UserError(f"{' and '.join(wrong)} {why}")


def new_folder(out: Path | None, recipe: str) -> Path:
    """The run folder, not created yet.

    Raises:
        UserError: it exists and is not empty, or cannot be created.
    """
    stem = re.sub(r"[^\w.-]+", "_", recipe)
    folder = out if out is not None else Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    existing = _nearest_existing(folder)
    if not _is_writable(existing):
        raise UserError(f"cannot use {folder} as a run folder: {existing} is no folder that can be written to")
    if existing is folder and any(folder.iterdir()):
        is_run = (folder / "recipe.gin").is_file()
        hint = f", or go on with its run: dlmrl train --resume {quoted(folder)}" if is_run else ""
        raise UserError(f"{folder} is not empty; choose another --out{hint}")
    return folder


def new_file(path: Path, option: str) -> Path:
    """A file that an option names, not created yet.

    Raises:
        UserError: it exists, or cannot be created.
    """
    existing = _nearest_existing(path)
    if existing is path:
        raise UserError(f"{path} exists already; choose another {option}")
    if not _is_writable(existing):
        raise UserError(f"cannot write {path}: {existing} is no folder that can be written to")
    return path


def _nearest_existing(path: Path) -> Path:
    """The path itself if there is something, otherwise the nearest folder above that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)


def print_notes(recipe: Any) -> None:
    """What loading a recipe left out and why, on standard error."""
    for note in recipe.notes:
        typer.echo(f"note: {note}", err=True)


def print_json(data: Any) -> None:
    """Data as JSON on standard output."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def new_console() -> Console:
    """Where tables are printed: standard output, wide where it is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console
