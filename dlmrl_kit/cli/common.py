"""What the commands of ``dlmrl`` share: options, one-line errors, new folders and files, output."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from dlmrl_kit.cli import completion
from dlmrl_kit.core.errors import StoppedError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from dlmrl_kit.core.results import RunObserver
    from dlmrl_kit.recipe.load import Recipe

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_RECIPE = "egspo_sa"
EXIT_STOPPED = 75
"""Exit code of a run that SIGTERM has stopped and that can go on, as of sysexits: try again later."""
PIPE_WIDTH = 160
"""Columns of tables in a file, or in a pipe that no terminal is at the end of."""
_COMMA = re.compile(r",(?![^(\[{]*[)\]}])")
"""Between two values, not inside a list or tuple."""

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="BINDING",
        help="Set a parameter, e.g. UniformSteps.k=4. May be repeated.",
        show_default=False,
        autocompletion=completion.binding,
    ),
]
Uses = Annotated[
    list[str] | None,
    typer.Option(
        "--use",
        metavar="KIND=NAME",
        help="Swap a component, e.g. selector=UniformSteps. May be repeated.",
        show_default=False,
        autocompletion=completion.use,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run folder. Default: runs/RECIPE-DATE-TIME.", show_default=False),
]
ExperimentOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder; the same command goes on with it.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Runs at a time. Default: one per core, at most 8; 1 with a GPU.",
        show_default=False,
    ),
]
AllowImports = Annotated[
    bool, typer.Option("--allow-imports", help="Run the import statements of the recipe, that is, code.")
]
AcceptChanges = Annotated[
    bool,
    typer.Option(
        "--accept-changes",
        help="Go on although settings, files, versions or threads have changed. run.json records what.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorates a command so that a ``UserError`` becomes one line on standard error and exit code 2.

    An error in a component of a plugin does, too; one in the kit itself stays a traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except StoppedError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(EXIT_STOPPED) from None
        except UserError as error:
            print_error(error)
            raise typer.Exit(2) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            from dlmrl_kit.core.blame import blame

            blamed = blame(error)
            if blamed is None:
                raise
            typer.echo(f"error: {blamed}", err=True)
            raise typer.Exit(2) from error

    return wrapped


def print_error(error: UserError) -> None:
    """Prints an error in one line on standard error."""
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)


def resolved_recipe(recipe: str, sets: list[str] | None, uses: list[str] | None, allow_imports: bool) -> Recipe:
    """Loads a recipe with the overrides of the command line.

    Args:
        recipe: name or path.
        sets, uses, allow_imports: the options of the same meaning.

    Raises:
        UserError: anything wrong with the recipe or the overrides.
    """
    from dlmrl_kit.recipe.load import load_recipe

    return load_recipe(recipe, sets=sets or (), uses=uses or (), allow_imports=allow_imports)


def listed(given: list[str] | None) -> list[str]:
    """Returns the entries of an option that is repeated, or takes several separated by commas."""
    return [entry.strip() for text in given or [] for entry in text.split(",") if entry.strip()]


def valued(given: list[str] | None, option: str, example: str) -> dict[str, tuple[str, ...]]:
    """Reads an option ``KEY=A,B`` that may be repeated: by setting, the values to take.

    Args:
        given: the option's values; one setting may have several, which add up.
        option: its name, for errors.
        example: of what is written after it.

    Raises:
        UserError: it is not of this form, or a setting has a value twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in given or []:
        key, _, values = (part.strip() for part in text.partition("="))
        several = [value.strip() for value in _COMMA.split(values)]
        if not key or not all(several):
            raise UserError(f"{option} {text}: write {option} KEY=A,B, for example {option} {example}")
        for value in several:
            if value in found.get(key, ()):
                raise UserError(f"{option} {key} has the value {value} twice")
            found[key] = (*found.get(key, ()), value)
    return found


def print_notes(recipe: Recipe) -> None:
    """Prints what loading a recipe left out and why, on standard error."""
    for note in recipe.notes:
        typer.echo(f"note: {note}", err=True)


def show_run(
    run: Callable[[RunObserver], object], folder: Path, again: str, speaks: bool = True, show_samples: int = 0
) -> None:
    """Calls ``run`` with an observer that displays the run.

    An interrupt ends the command with exit code 1.

    Args:
        run: trains in ``folder``, and reports to the observer that it is given.
        folder: the run folder.
        again: the command that goes on after an interrupt, for the user to read.
        speaks: whether this is the process, of several, that writes.
        show_samples: how many samples of each update are printed.
    """
    from dlmrl_kit.report.run_console import RichRunObserver

    try:
        with RichRunObserver(new_console(), show_samples) as observer:
            run(observer)
    except KeyboardInterrupt:
        started = (folder / "recipe.gin").is_file()
        hint = f"; go on with: {again}" if started else " before anything was written"
        if speaks:
            typer.echo(f"\ninterrupted{hint}", err=True)
        raise typer.Exit(1) from None


def refuse(given: Mapping[str, object], why: str) -> None:
    """Refuses options that do not go together with another one.

    Args:
        given: values by the name of the option; None and an empty list mean that it was not given.
        why: the end of the message, after the names.

    Raises:
        UserError: one of them was given.
    """
    wrong = [name for name, value in given.items() if value not in (None, [])]
    if wrong:
        raise UserError(f"{' and '.join(wrong)} {why}")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the context an interrupt ends the command with exit code 1, and says that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command goes on", err=True)
        raise typer.Exit(1) from None


def new_folder(out: Path | None, recipe: str) -> Path:
    """Returns the run folder, which is not created yet: ``out``, or one in ``runs`` named for the recipe and the time.

    Raises:
        UserError: it exists and holds more than what a start that failed left in it, or cannot be created.
    """
    stem = re.sub(r"[^\w.-]+", "_", recipe)
    folder = out if out is not None else Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    existing = _nearest_existing(folder)
    if not _is_writable(existing):
        raise UserError(f"cannot use {folder} as a run folder: {existing} is no folder that can be written to")
    from dlmrl_kit.core.run_folder import holds_run, is_free

    if existing is folder and not is_free(folder):
        hint = f", or go on with its run: dlmrl train --resume {quoted(folder)}" if holds_run(folder) else ""
        raise UserError(f"{folder} is not empty; choose another --out{hint}")
    return folder


def check_new_file(path: Path, option: str) -> None:
    """Checks that the file that an option names can be created.

    Raises:
        UserError: it exists, or its folder cannot be written to.
    """
    existing = _nearest_existing(path)
    if existing is path:
        raise UserError(f"{path} exists already; choose another {option}")
    if not _is_writable(existing):
        raise UserError(f"cannot write {path}: {existing} is no folder that can be written to")


def _nearest_existing(path: Path) -> Path:
    """Returns the path itself if there is something, otherwise the nearest folder above that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)


def print_json(data: object) -> None:
    """Prints data as JSON on standard output."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def quoted(path: Path) -> str:
    """Returns a path as a shell takes it."""
    return shlex.quote(str(path))


def new_console(*, stderr: bool = False) -> Console:
    """Returns the console that tables are printed to, standard output or error.

    In a pipe (``dlmrl list | less``) its width is the terminal's that the command was typed in; in a file it is
    ``PIPE_WIDTH``. ``COLUMNS`` counts before both.
    """
    from rich.console import Console

    console = Console(highlight=False, stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _width_of_terminal() or PIPE_WIDTH
    return console


def _width_of_terminal() -> int | None:
    """Returns the columns of the terminal at standard error or input where standard output is a pipe, else None."""
    try:
        if not stat.S_ISFIFO(os.fstat(1).st_mode):
            return None
    except OSError:  # standard output is closed
        return None
    for stream in (2, 0):
        with contextlib.suppress(OSError):
            return os.get_terminal_size(stream).columns
    return None
