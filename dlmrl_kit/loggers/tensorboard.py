"""TensorBoard event files, through TorchRL's logger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.loggers.torchrl_logger import torchrl_logger
from dlmrl_kit.registry import register


@register("logger")
class TensorBoard(Logger):
    """Writes event files into ``<run>/tensorboard``; look at them with ``tensorboard --logdir runs``.

    When a run is resumed, TensorBoard is told to hide what an interrupted run logged after the checkpoint.
    """

    def __init__(self) -> None:
        self._logger: Any = None

    def open(self, folder: Path, first_update: int) -> None:
        """Starts an event file.

        Raises:
            UserError: tensorboard is not installed.
        """
        self.close()
        continued = any((folder / "tensorboard").glob("events.out.tfevents.*"))
        self._logger = torchrl_logger("tensorboard", str(folder), "tensorboard")
        if continued:
            # Evaluations at first_update are kept (see Logger.open). The writer purges when it opens a file.
            writer = self._logger.experiment
            writer.close()
            writer.purge_step = first_update + 1

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics."""
        if self._logger is None:
            raise self._not_open()
        self._logger.log_metrics(dict(metrics), step=update)

    def close(self) -> None:
        """Flushes and closes the event file."""
        if self._logger is not None:
            self._logger.close()
            self._logger = None
