"""The loggers of a run while it goes on: all are closed however it ends, and a full disk is told in one line.

A run needs its loggers, but not its trackers: one that fails, or does not answer, is left out from then on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.files import reason_of
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.loggers.metrics_csv import FILE as METRICS
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.loggers.tracker import Tracker
from dlmrl_kit.training.thread_errors import ThreadErrors

PATIENCE = 120.0
"""Seconds after which a tracker is taken not to answer."""


class OpenLoggers:
    """Hands on to all loggers of a run what they log.

    Args:
        loggers: of the recipe.
        folder: the run folder.
        say: is called with what the user should know of a tracker that fails.
    """

    def __init__(self, loggers: Sequence[Logger], folder: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.loggers = list(loggers)
        self.folder = folder
        self.say = say
        self._threads = ThreadErrors([logger.package for logger in loggers if isinstance(logger, Tracker)])

    @property
    def notes(self) -> list[str]:
        """What the user should know of the loggers before the run starts."""
        if any(isinstance(logger, MetricsCSV) for logger in self.loggers):
            return []
        return [f"Algorithm.logger has no MetricsCSV: no {METRICS} is kept, of which dlmrl plot draws figures"]

    @contextlib.contextmanager
    def open(self, first: int, settings: Mapping[str, str]) -> Iterator[None]:
        """Within the context the loggers are open; all are closed, also if one of them, or what is inside, fails.

        Args:
            first: the next update of the run.
            settings: of the recipe, as ``Logger.log_settings`` takes them.

        Raises:
            FileError: a logger cannot write.
        """
        with self._threads, contextlib.ExitStack() as opened:
            for logger in list(self.loggers):
                opened.callback(self._close, logger)
                self._call(logger, lambda logger=logger: logger.open(self.folder, first))  # type: ignore[misc]
            self._all(lambda logger: logger.log_settings(settings))
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong first is what the user should read
                    opened.close()
                raise

    @property
    def has_trackers(self) -> bool:
        """Whether a tracker among them still gets something."""
        return any(isinstance(logger, Tracker) for logger in self.loggers)

    def log(self, update: int, values: dict[str, float]) -> None:
        """Writes the metrics of an update; raises as ``open``."""
        self._all(lambda logger: logger.log(update, values))

    def log_evaluation(self, update: int, result: EvalResult) -> None:
        """Writes what an evaluation has found; raises as ``open``."""
        self._all(lambda logger: logger.log_evaluation(update, result))

    def log_file(self, update: int, path: Path) -> None:
        """Hands on a file of the run folder, if it is there; raises as ``open``."""
        if path.is_file():
            self._all(lambda logger: logger.log_file(update, path))

    def _all(self, call: Callable[[Logger], None]) -> None:
        for logger in list(self.loggers):
            self._call(logger, lambda logger=logger: call(logger))  # type: ignore[misc]

    def _close(self, logger: Logger) -> None:
        if logger in self.loggers:
            self._call(logger, logger.close)

    def _call(self, logger: Logger, call: Callable[[], None]) -> None:
        """Calls a method of a logger; makes one line of what goes wrong with its files, in its threads too."""
        if isinstance(logger, Tracker):
            problem = _problem_of(call)
            if problem is not None:
                self.loggers.remove(logger)
                name = type(logger).__name__
                self.say(f"{name} gets nothing more of this run, which goes on without it: {problem.text}")
                if problem.answered:  # what it has got so far it shall keep
                    _problem_of(logger.close)
            return
        try:
            call()
            self._threads.check()
        except OSError as error:
            name = type(logger).__name__
            raise FileError(f"{name} cannot write metrics into {self.folder}: {reason_of(error)}") from error


class _Problem(NamedTuple):
    text: str
    answered: bool
    """Whether the call has come to an end."""


def _problem_of(call: Callable[[], None]) -> _Problem | None:
    """Calls a method of a tracker, which may raise anything or never return; returns what went wrong, if anything."""
    found: list[_Problem] = []

    def in_thread() -> None:
        try:
            call()
        except BaseException as error:  # libraries raise SystemExit, too
            text = clipped(f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))
            found.append(_Problem(text, True))

    thread = threading.Thread(target=in_thread, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        return _Problem(f"no answer in {PATIENCE:g} seconds", False)
    return found[0] if found else None
