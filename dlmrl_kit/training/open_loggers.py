"""The loggers of a run while it goes on: all are closed however it ends, and a full disk is told in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.files import reason_of
from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.training.thread_errors import ThreadErrors


class OpenLoggers:
    """Writes metrics to all loggers of a run.

    Args:
        loggers: of the recipe.
        folder: the run folder.
    """

    def __init__(self, loggers: Sequence[Logger], folder: Path) -> None:
        self.loggers = loggers
        self.folder = folder
        self._threads = ThreadErrors()

    @contextlib.contextmanager
    def open(self, first: int) -> Iterator[None]:
        """Within the context the loggers are open; all are closed, also if one of them, or what is inside, fails.

        Args:
            first: the next update of the run.

        Raises:
            FileError: a logger cannot write.
        """
        with self._threads, contextlib.ExitStack() as opened:
            for logger in self.loggers:
                opened.callback(self._close, logger)
                with self._writing(logger):
                    logger.open(self.folder, first)
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong first is what the user should read
                    opened.close()
                raise

    def log(self, update: int, values: dict[str, float]) -> None:
        """Writes the metrics of an update; raises as ``open``."""
        for logger in self.loggers:
            with self._writing(logger):
                logger.log(update, values)

    def _close(self, logger: Logger) -> None:
        with self._writing(logger):
            logger.close()

    @contextlib.contextmanager
    def _writing(self, logger: Logger) -> Iterator[None]:
        """Makes one line of what goes wrong with a logger's files, in its threads too."""
        try:
            yield
            self._threads.check()
        except OSError as error:
            name = type(logger).__name__
            raise FileError(f"{name} cannot write metrics into {self.folder}: {reason_of(error)}") from error
