"""``metrics.csv``: every metric of a run in one tidy table, exact and safe to read while the run goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.loggers.base import Handled, metric_name

FILE = "metrics.csv"
HEADER = ("update", "metric", "value")

Row = tuple[int, str, float]


@register("logger")
class MetricsCSV(Handled[TextIO]):
    """Writes ``metrics.csv`` into the run folder: one row ``update,metric,value`` per number.

    Metrics may begin at any update. One ``pivot`` makes a wide table of the file:
    ``pandas.read_csv(path).pivot(index="update", columns="metric", values="value")``. Values are written with all their
    digits. Each call of ``log`` reaches the file before it returns; a resumed run first drops what it will log again.
    """

    def open(self, folder: Path, first_update: int) -> None:
        """Starts or continues ``metrics.csv``; rows of updates that will be run again are removed.

        Raises:
            CheckpointError: the file is not one of this logger's.
        """
        self.close()
        path = folder / FILE
        kept = [row for row in _read_rows(path) if not _stale(row, first_update)] if path.exists() else []
        write_atomic(path, _to_csv([HEADER, *kept]))
        self._handle = path.open("a", encoding="utf-8", newline="")

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Appends one row per metric."""
        file = self._opened()
        file.write(_to_csv((update, metric_name(name), float(value)) for name, value in metrics.items()))
        file.flush()

    def _end(self, handle: TextIO) -> None:
        handle.close()


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads the metrics of a run, which may still be going on.

    Args:
        folder: of the run.

    Returns:
        For each metric its (update, value) pairs in order of updates. Where an update was logged twice, the later value
        counts.

    Raises:
        CheckpointError: no ``metrics.csv`` in ``folder``, or not one of this package.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {FILE}; is it a run folder, and was MetricsCSV among its loggers?")
    series: dict[str, dict[int, float]] = {}
    for update, metric, value in _read_rows(path):
        series.setdefault(metric, {})[update] = value
    return {metric: sorted(values.items()) for metric, values in series.items()}


def _stale(row: Row, first_update: int) -> bool:
    """Tells whether a run that resumes with ``first_update`` logs this row again."""
    update, metric, _ = row
    evaluated_before = update == first_update and metric.startswith("eval/")
    return update >= first_update and not evaluated_before


def _read_rows(path: Path) -> list[Row]:
    """Reads all complete rows. A last line without its end was cut off when the process was killed; it is left out."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = text.split("\n")[:-1]
    if not lines:
        return []
    if tuple(lines[0].split(",")) != HEADER:
        raise CheckpointError(f"{path} does not start with {','.join(HEADER)!r}; move it away to log there")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            update, metric, value = next(csv.reader([line]))
            rows.append((int(update), metric, float(value)))
        except (ValueError, StopIteration, csv.Error):
            told = f"{path}, line {number}: not a row of {','.join(HEADER)}: {clipped(repr(line))}"
            raise CheckpointError(told) from None
    return rows


def _to_csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
