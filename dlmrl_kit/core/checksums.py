"""Checksums of the files of a folder, beside them: what was changed or damaged since is found when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from dlmrl_kit.core.files import read_regular, reason_of

CHECKSUMS = "checksums.json"
"""SHA-256 digests by the names of files, with ``/`` between the names of folders."""


def file_digest(path: Path) -> str:
    """Returns the SHA-256 digest of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_checksums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Writes the checksums of all files of a folder, those in its folders included.

    Args:
        folder: in which nothing is written any more.
        known: digests of some of the files, by name; those of the others are computed.

    Raises:
        OSError: a file cannot be read or written.
    """
    sums = {name: (known or {}).get(name) or file_digest(folder / name) for name in names_in(folder)}
    (folder / CHECKSUMS).write_text(json.dumps(sums))


def names_in(folder: Path) -> list[str]:
    """Lists the files of a folder that have checksums, those in its folders included, in order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return [path.relative_to(folder).as_posix() for path in files]


def read_checksums(folder: Path) -> dict[str, str]:
    """Returns the checksums of a folder's files, by name.

    Raises:
        OSError: they cannot be read.
        ValueError: they are damaged.
    """
    found = json.loads(read_regular(folder / CHECKSUMS))
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("it holds no checksums by name")
    return found


def damage(path: Path, checksum: str | None) -> str:
    """Says how a file is not as it was written; "" if it is.

    Args:
        path: of the file.
        checksum: as it was written; None: it was not.
    """
    try:
        same = file_digest(path) == checksum
    except OSError as error:
        return reason_of(error)
    return "" if same else "it is not what was written there: its checksum is another one"
