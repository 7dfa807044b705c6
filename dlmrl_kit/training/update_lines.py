"""Files of a run with a line of JSON for each update, which a resumed run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.files import reason_of, write_atomic

STEPS = "steps.jsonl"
"""What the denoising steps of each update's rollout were like: lists by step (``training.rollout_record``)."""
COMPLETIONS = "completions.jsonl"
"""Some completions of each update's rollout, with their rewards."""


def cut_lines(path: Path, first_update: int) -> None:
    """Drops the lines of ``first_update`` and later ones, which will be written again, and what a kill cut off.

    Raises:
        FileError: the file cannot be written.
    """
    if path.is_file():
        kept = [line for line in read_lines(path) if line["update"] < first_update]
        write_atomic(path, "".join(map(_line, kept)))


def add_lines(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Appends a line for each entry, which has an ``update``.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, entries)))
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason_of(error)}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads all entries; lines that are none, such as one that a kill has cut off, are left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("update"), int):
            found.append(entry)
    return found


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", errors="replace").decode() + "\n"
