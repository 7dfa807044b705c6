"""What each run of a comparison came to, kept as CSV, from which all tables and figures are made.

``<out>/curves/<entry>-seed-<n>.csv`` holds the evaluations of a run, and ``<out>/runs.csv`` a row per run.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import wilson_interval
from dlmrl_kit.experiments.aggregate import csv_text
from dlmrl_kit.experiments.referee.entries import Entry
from dlmrl_kit.experiments.runs import Job
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.training.evaluation_files import EVALUATIONS, VALIDATIONS, read_evaluations

CURVES, RUNS = "curves", "runs.csv"
POINT = ("update", "forwards", "tokens", "accuracy", "reward", "validation")
RUN = ("task", "recipe", "seed", "settings", "status", "before", "final", "best", "size", "forwards", "tokens")


@dataclass(frozen=True)
class Point:
    """An evaluation of a run.

    Attributes:
        update: updates before it.
        forwards, tokens: that went through the model in these.
        accuracy, reward: on held-out examples.
        validation: accuracy on validation examples; None: there are none.
    """

    update: int
    forwards: float
    tokens: float
    accuracy: float
    reward: float
    validation: float | None


@dataclass(frozen=True)
class Outcome:
    """A run of a comparison.

    Attributes:
        task, recipe, seed: what was run.
        settings: that were tuned, as bindings joined by "; ".
        status: ``finished`` or ``failed``; a failed run counts with its last evaluation, as its checkpoint is there.
        size: held-out examples.
        curve: its evaluations, in order; empty where it failed before the first.
    """

    task: str
    recipe: str
    seed: int
    settings: str
    status: str
    size: int
    curve: tuple[Point, ...]

    @property
    def before(self) -> float:
        """Accuracy before training."""
        return self.curve[0].accuracy

    @property
    def final(self) -> float:
        """Accuracy at the last evaluation."""
        return self.curve[-1].accuracy

    @property
    def best(self) -> float | None:
        """Held-out accuracy of the model that is best on validation examples; None without these."""
        trained = [point for point in self.curve[1:] if point.validation is not None]
        if not trained:
            return None
        return max(trained, key=lambda point: (point.validation or 0.0, -point.update)).accuracy

    @property
    def collapsed(self) -> bool:
        """Whether the run failed, or ended below the 95% interval of the accuracy that it began with."""
        return self.status == "failed" or self.final < wilson_interval(self.before, self.size)[0]


def outcome_of(entry: Entry, point: int, job: Job) -> Outcome:
    """Reads what a run came to from its folder."""
    settings = "; ".join(entry.points[point])
    curve, size = _curve(job.folder)
    return Outcome(entry.task, entry.recipe, job.seed, settings, job.status, size, curve)


def _curve(folder: Path) -> tuple[tuple[Point, ...], int]:
    path = folder / EVALUATIONS
    if not path.is_file():
        return (), 0
    metrics = read_metrics(folder)
    results = sorted(read_evaluations(path).items())
    chosen_on = read_evaluations(folder / VALIDATIONS) if (folder / VALIDATIONS).is_file() else {}
    spent = {name: dict(metrics.get(f"forwards/{name}", [])) for name in ("rollout", "update", "tokens")}

    def total(name: str, updates: int) -> float:
        return sum(value for update, value in spent[name].items() if update < updates)

    return tuple(
        Point(
            update,
            total("rollout", update) + total("update", update),
            total("tokens", update),
            result.accuracy,
            result.reward,
            chosen_on[update].accuracy if update in chosen_on else None,
        )
        for update, result in results
    ), results[0][1].size


def write_outcomes(outcomes: Iterable[Outcome], folder: Path) -> None:
    """Writes ``runs.csv`` and the curves."""
    rows: list[Sequence[object]] = [RUN]
    for outcome in outcomes:
        known = (outcome.before, outcome.final, outcome.best) if outcome.curve else (None, None, None)
        spent = (outcome.curve[-1].forwards, outcome.curve[-1].tokens) if outcome.curve else (None, None)
        what = (outcome.task, outcome.recipe, outcome.seed, outcome.settings, outcome.status)
        rows.append((*what, *known, outcome.size, *spent))
        points = [tuple(getattr(point, name) for name in POINT) for point in outcome.curve]
        write_atomic(folder / CURVES / _file(*what[:3]), csv_text([POINT, *points]))
    write_atomic(folder / RUNS, csv_text(rows))


def read_outcomes(folder: Path) -> list[Outcome]:
    """Reads what ``write_outcomes`` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    found = []
    for row in table_rows(folder / RUNS, RUN, numbers=("seed", "size")):
        what = row["task"], row["recipe"], int(row["seed"])
        path, size = folder / CURVES / _file(*what), int(row["size"])
        curve = tuple(map(_point, table_rows(path, POINT, numbers=POINT[:-1])))
        if bool(curve) != bool(row["final"]):
            raise CheckpointError(f"{path} has {len(curve)} evaluations, and {folder / RUNS} says otherwise")
        found.append(Outcome(*what, row["settings"], row["status"], size, curve))
    if not found:
        raise CheckpointError(f"{folder / RUNS} holds no run")
    return found


def _file(task: str, recipe: str, seed: int) -> str:
    return f"{task}-{recipe}-seed-{seed}.csv"


def _point(row: Mapping[str, str]) -> Point:
    values = {name: float(row[name]) for name in ("forwards", "tokens", "accuracy", "reward")}
    return Point(int(row["update"]), **values, validation=float(row["validation"]) if row["validation"] else None)


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
