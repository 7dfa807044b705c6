"""Atomic files and folders: whatever has its final name is complete, even if the process is killed at any moment."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is complete or not there, and creates its folder if need be.

    It is written under a temporary name in the same folder, flushed to disk and renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes ``path`` when the block ends without an error.

    A folder that is at ``path`` already is replaced. It is renamed first and removed last, so that a kill never leaves
    half of it. Temporary folders of killed processes are removed, so only one process may write a folder at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    replaced = path.with_name(f".{path.name}.old{os.getpid()}")
    _remove_leftovers(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            path.replace(replaced)
        temporary.replace(path)
    finally:
        _remove_leftovers(path)


def _remove_leftovers(path: Path) -> None:
    for kind in ("tmp", "old"):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{kind}*"):
            shutil.rmtree(leftover, ignore_errors=True)
