"""Writes metrics as JSON, a line each update."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from dlmrl_kit import register
from dlmrl_kit.loggers.base import Handled


@register("logger")
class AcmeLogger(Handled[TextIO]):
    """Writes ``acme.jsonl`` into the run folder: an object with ``update`` and all metrics for each call of ``log``."""

    def open(self, folder: Path, first_update: int) -> None:
        """Starts the file, or goes on with it; lines of updates that will be run again are removed."""
        path = folder / "acme.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []  # the last may be cut off
        kept = [line for line in lines if not _stale(json.loads(line), first_update)]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._handle = path.open("a", encoding="utf-8")

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        file = self._opened()
        file.write(json.dumps({"update": update, **metrics}) + "\n")
        file.flush()

    def _end(self, handle: TextIO) -> None:
        handle.close()


def _stale(line: dict[str, float], first_update: int) -> bool:
    """Tells whether a run that resumes with ``first_update`` logs a line again: not the evaluation before it."""
    evaluated = all(name == "update" or name.startswith("eval/") for name in line)
    return line["update"] >= first_update and not (evaluated and line["update"] == first_update)
