"""The outcomes of a comparison as CSV files, from which all tables and figures are made, and which say what is done.

``<out>/curves/<run>.csv`` holds the evaluations of a run. ``<out>/runs.csv`` has a row for each run that is reported,
``<out>/tuning.csv`` one for each that settings were chosen by. All are written as soon as a run ends.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.experiments.aggregate import csv_text
from dlmrl_kit.experiments.referee.outcomes import Outcome, Point, run_digest, run_name
from dlmrl_kit.experiments.runs import Job

CURVES, RUNS, TUNING = "curves", "runs.csv", "tuning.csv"
POINT = ("update", "forwards", "tokens", "accuracy", "reward", "validation")
WHAT = ("task", "recipe", "seed", "settings", "status")
RESULTS = ("before", "final", "best", "size", "forwards", "tokens", "seconds")
RUN = (*WHAT, *RESULTS, "run", "digest")


class Records:
    """A table of runs in the folder of a comparison.

    Args:
        folder: of the comparison.
        table: the name of the file: ``RUNS`` or ``TUNING``.

    Raises:
        CheckpointError: the table, or a curve of it, is damaged.
    """

    def __init__(self, folder: Path, table: str) -> None:
        self.folder, self.table = folder, table
        stored = read_outcomes(folder, table) if (folder / table).is_file() else []
        self._outcomes = {outcome.run: outcome for outcome in stored if outcome.status == "finished"}
        if len(self._outcomes) < len(stored):  # before the curve of one that failed is written again
            self._write()

    def finished(self, job: Job) -> Outcome | None:
        """Returns what a run came to that is finished according to the table; None for any other."""
        outcome = self._outcomes.get(run_name(job))
        return outcome if outcome is not None and outcome.digest == run_digest(job, self.folder) else None

    def add(self, outcome: Outcome) -> None:
        """Writes the curve of a run that has ended, then its row."""
        points = [tuple(getattr(point, name) for name in POINT) for point in outcome.curve]
        write_atomic(self.folder / CURVES / _file(outcome.run), csv_text([POINT, *points]))
        self._outcomes[outcome.run] = outcome
        self._write()

    def arrange(self, runs: Iterable[str]) -> None:
        """Writes the rows of these runs, in their order, and leaves out others."""
        self._outcomes = {run: self._outcomes[run] for run in runs}
        self._write()

    def _write(self) -> None:
        write_atomic(self.folder / self.table, csv_text([RUN, *map(_row, self._outcomes.values())]))


def read_outcomes(folder: Path, table: str = RUNS) -> list[Outcome]:
    """Reads the runs of a table, with their curves.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    found = []
    for row in table_rows(folder / table, RUN, numbers=("seed", "size")):
        path = folder / CURVES / _file(row["run"])
        try:
            curve = tuple(map(_point, table_rows(path, POINT, numbers=POINT[:-1])))
            found.append(_outcome(row, curve))
        except ValueError as error:
            raise CheckpointError(f"{folder / table} or {path} is damaged: {error}") from error
        if bool(curve) != bool(row["final"]):
            raise CheckpointError(f"{path} has {len(curve)} evaluations, and {folder / table} says otherwise")
    return found


def table_rows(path: Path, titles: Sequence[str], *, numbers: Collection[str]) -> list[dict[str, str]]:
    """Reads the rows of a CSV file.

    Args:
        path: of the file.
        titles: its first line.
        numbers: titles under which every row has a finite number; under others of numbers it may have none.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        rows = list(reader)
        if tuple(reader.fieldnames or ()) != tuple(titles):
            raise ValueError
        for row in rows:
            if None in row or None in row.values() or not all(math.isfinite(float(row[name])) for name in numbers):
                raise ValueError
    except (OSError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is missing or no table of {', '.join(titles)}") from error
    return rows


def _row(outcome: Outcome) -> Sequence[object]:
    known = (outcome.before, outcome.final, outcome.best) if outcome.curve else (None, None, None)
    spent = (outcome.curve[-1].forwards, outcome.curve[-1].tokens) if outcome.curve else (None, None)
    what = (getattr(outcome, name) for name in WHAT)
    return (*what, *known, outcome.size, *spent, outcome.seconds, outcome.run, outcome.digest)


def _file(run: str) -> str:
    return f"{run}.csv"


def _point(row: Mapping[str, str]) -> Point:
    values = {name: float(row[name]) for name in ("forwards", "tokens", "accuracy", "reward")}
    return Point(int(row["update"]), **values, validation=float(row["validation"]) if row["validation"] else None)


def _outcome(row: Mapping[str, str], curve: tuple[Point, ...]) -> Outcome:
    what = row["task"], row["recipe"], int(row["seed"]), row["settings"], row["status"], int(row["size"])
    seconds = float(row["seconds"]) if row["seconds"] else None
    return Outcome(*what, curve, seconds, row["run"], row["digest"])
