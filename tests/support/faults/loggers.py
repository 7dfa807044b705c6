"""Loggers with one mistake each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlmrl_kit.loggers.metrics_csv import MetricsCSV


class LogsEarly(MetricsCSV):
    """Logs into nothing."""

    def log(self, update: int, metrics: Any) -> None:
        if self._handle is not None:
            super().log(update, metrics)


class ClosesOnce(MetricsCSV):
    """Cannot be closed twice."""

    def close(self) -> None:
        assert self._handle is not None
        super().close()


class CannotResume(MetricsCSV):
    """Starts from the beginning only."""

    def open(self, folder: Path, first_update: int) -> None:
        assert first_update == 0
        super().open(folder, first_update)
