"""The page of a run that shows how its policy decodes held-out examples: before training, and now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.run_folder import read_json
from dlmrl_kit.training.trace import Trace
from dlmrl_kit.training.trace_page import write_page

PAGE, DATA = "trajectories.html", "trajectories.json"


def write_trajectories(folder: Path, recipe: str, done: int, traces: Sequence[Trace]) -> None:
    """Writes ``trajectories.html`` with these traces beside those before training, and keeps both for later pages.

    Args:
        folder: of the run.
        recipe: name, for the title.
        done: updates that the policy has had.
        traces: of the evaluation's first examples.

    Raises:
        FileError: a file cannot be written, or the stored traces are damaged.
    """
    known: dict[str, list[Trace]] = {}
    if done and (folder / DATA).is_file():
        known = read_json(folder / DATA, _read, "remove it, and go on")
    kept = {"0": known["0"]} if "0" in known else {}
    kept[str(done)] = list(traces)
    write_atomic(folder / DATA, json.dumps({update: [t.to_json() for t in found] for update, found in kept.items()}))
    title = f"{recipe}: held-out examples, decoded as in evaluations"
    write_page(folder / PAGE, title, [trace for found in kept.values() for trace in found])


def _read(data: dict[str, list[dict[str, object]]]) -> dict[str, list[Trace]]:
    return {update: [Trace.from_json(trace) for trace in traces] for update, traces in data.items()}
