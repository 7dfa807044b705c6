"""Files: read if they are regular, written atomically.

Whatever has its final name is complete, even if the process is killed at any moment.

A disk that is full, or a folder that is gone, ends in a ``FileError`` of one line, and what was there before stays.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from dlmrl_kit.core.errors import FileError


def read_regular(path: Path, most: int = -1) -> bytes:
    """Reads a regular file, or at most its first ``most`` bytes; links are followed.

    Opening a pipe would wait for a writer, and devices such as ``/dev/zero`` have no end.

    Raises:
        OSError: the file is not there, may not be read, has a name that no file can have, or is a folder, a device, a
            pipe or a socket.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a device, pipe or socket, not a regular file", str(path))
    with path.open("rb") as file:
        return file.read(most)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is complete or not there, and creates its folder if need be.

    It is written under a temporary name in the same folder, flushed to disk and renamed.

    Raises:
        FileError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason_of(error)}") from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes ``path`` when the block ends without an error.

    A folder that is at ``path`` already is replaced. It is renamed first and removed last, so that a kill never leaves
    half of it. Temporary folders of killed processes are removed, so only one process may write a folder at a time.

    Raises:
        FileError: it, or a file that the block writes, cannot be written; what was at ``path`` before is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    replaced = path.with_name(f".{path.name}.old{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        _replace(temporary, path, replaced)
    except (OSError, SafetensorError) as error:
        raise FileError(f"cannot write {path}: {reason_of(error)}") from error
    finally:
        _remove_leftovers(path)


def _replace(temporary: Path, path: Path, replaced: Path) -> None:
    """Renames a folder into place; what was there is moved to ``replaced``, and back if that fails."""
    if not path.exists():
        temporary.replace(path)
        return
    path.replace(replaced)
    try:
        temporary.replace(path)
    except OSError:
        replaced.replace(path)
        raise


def reason_of(error: OSError | SafetensorError) -> str:
    """Returns what went wrong with a file, in one line and without the name of a temporary one."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split()) or type(error).__name__


def _remove_leftovers(path: Path) -> None:
    for kind in ("tmp", "old"):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{kind}*"):
            shutil.rmtree(leftover, ignore_errors=True)
