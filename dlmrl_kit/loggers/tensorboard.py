"""TensorBoard event files, through TorchRL's logger."""

from __future__ import annotations

from pathlib import Path

from dlmrl_kit.core.registry import register
from dlmrl_kit.loggers.torchrl_logger import Forwarding, torchrl_logger


@register("logger")
class TensorBoard(Forwarding):
    """Writes event files into ``<run>/tensorboard``; look at them with ``tensorboard --logdir runs``.

    When a run is resumed, TensorBoard hides what an interrupted run logged after the checkpoint.
    """

    def open(self, folder: Path, first_update: int) -> None:
        """Starts an event file.

        Raises:
            UserError: tensorboard is not installed.
        """
        self.close()
        continued = any((folder / "tensorboard").glob("events.out.tfevents.*"))
        self._logger = torchrl_logger("tensorboard", str(folder), "tensorboard")
        if continued:
            # Evaluations at first_update are kept (see Logger.open). The writer of torch purges when it opens a file,
            # which is the only way to tell it: TorchRL's logger has no argument for that.
            writer = self._logger.experiment
            writer.close()
            writer.purge_step = first_update + 1
