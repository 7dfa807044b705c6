"""Run folders: one writer at a time, what tells that a folder is taken, and its JSON files, which may be damaged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dlmrl_kit.core.errors import CheckpointError, FileError, UserError
from dlmrl_kit.core.files import read_regular, reason_of

T = TypeVar("T")

RECIPE = "recipe.gin"
"""The resolved recipe: a folder that has it holds a run."""
ABOUT = "run.json"
"""The recipe's name and what the run depends on; written right before the recipe."""
RESULT = "result.json"
"""The last file of a run: with it the run is finished."""
CHECKPOINTS = "checkpoints"
TRACEBACK = "traceback.txt"
"""Where an error of a plugin's component came up."""
LOCK = ".lock"

FAILED = "failed_start"
"""The entry of ``run.json`` with the error that ended a run before its first checkpoint."""


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes for as long as the block runs; creates it if need be.

    The lock ends with the process, however that ends. A folder that was created and is still empty is removed again.

    Raises:
        UserError: another process works on the folder, or it cannot be created.
    """
    from filelock import FileLock, Timeout

    created = _create(folder)
    lock = FileLock(folder / LOCK)
    try:
        with contextlib.suppress(NotImplementedError):  # a file system without locks
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is working on {folder}; wait for it, or stop it") from None
    except OSError as error:
        raise FileError(f"cannot write in {folder}: {reason_of(error)}") from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is held: nobody else can have taken it
        lock.release()
        for path in created:
            with contextlib.suppress(OSError):  # not empty: the run's
                path.rmdir()


def _create(folder: Path) -> list[Path]:
    """Creates a folder; returns the folders that were missing, the innermost first."""
    missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot create {folder}: {reason_of(error)}") from error
    return missing


def holds_run(folder: Path) -> bool:
    """Tells whether a folder holds a run that goes on with a resume: one that did not fail at its start."""
    return (folder / RECIPE).is_file() and not failed_start(folder)


def failed_start(folder: Path) -> bool:
    """Tells whether a folder holds a run that an error ended before its first checkpoint, so that nothing is lost."""
    if (folder / RESULT).exists() or any((folder / CHECKPOINTS).glob("update-*")):
        return False
    try:
        about = read_about(folder)
    except CheckpointError:
        return False
    return FAILED in about


def is_free(folder: Path) -> bool:
    """Tells whether a new run may start in a folder: it is empty, but for what a start that failed left in it."""
    if failed_start(folder):
        return True
    return all(
        path.name in (LOCK, ABOUT, TRACEBACK) or path.name.startswith(f".{ABOUT}.tmp") for path in folder.iterdir()
    )


def read_about(folder: Path) -> dict[str, Any]:
    """Reads ``run.json``; empty if there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / ABOUT
    return read_json(path, lambda found: {**found}) if path.is_file() else {}


def read_json(path: Path, parse: Callable[[Any], T], advice: str = "restore it, or start a new run") -> T:
    """Reads a JSON file of a run folder.

    Args:
        path: the file.
        parse: makes something of what it holds; a ``TypeError``, ``ValueError``, ``LookupError`` or ``AttributeError``
            means that it is not what was written there.
        advice: the end of the message.

    Raises:
        CheckpointError: the file cannot be read, or is not as it was written.
    """
    try:
        return parse(json.loads(read_regular(path).decode()))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({reason_of(error)}); {advice}") from error
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is damaged ({' '.join(reason.split())[:200]}); {advice}") from error


def require(folder: Path) -> None:
    """Checks that a run's folder is still there, so that nothing is written into a new one of its name.

    Raises:
        CheckpointError: it is gone.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} was moved or removed while its run went on; the run cannot go on without it")
