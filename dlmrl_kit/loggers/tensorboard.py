"""TensorBoard event files, through TorchRL's logger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.loggers.base import SAMPLE_COLUMNS, Handled, evaluation_metrics, metric_name

if TYPE_CHECKING:
    from torchrl.record.loggers.tensorboard import TensorboardLogger


@register("logger")
class TensorBoard(Handled["TensorboardLogger"]):
    """Writes event files into ``<run>/tensorboard``; look at them with ``tensorboard --logdir runs``.

    They hold the metrics, evaluations with their interval and some completions, the recipe and the figures. When a run
    is resumed, TensorBoard hides what an interrupted run logged after the checkpoint.
    """

    def open(self, folder: Path, first_update: int) -> None:
        """Starts an event file.

        Raises:
            UserError: tensorboard is not installed.
        """
        from torchrl.record.loggers import get_logger

        self.close()
        continued = any((folder / "tensorboard").glob("events.out.tfevents.*"))
        try:
            self._handle = get_logger("tensorboard", str(folder), "tensorboard")
        except ImportError as error:
            raise UserError(f"TensorBoard needs the package tensorboard ({error}): pip install tensorboard") from error
        if continued:
            # Evaluations at first_update are kept (see Logger.open). The writer of torch purges when it opens a file,
            # which is the only way to tell it: TorchRL's logger has no argument for that.
            writer = self._opened().experiment
            writer.close()
            writer.purge_step = first_update + 1

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics of an update."""
        self._opened().log_metrics({metric_name(name): value for name, value in metrics.items()}, step=update)

    def log_evaluation(self, update: int, result: EvalResult) -> None:
        """Writes the interval, and the completions as text."""
        logger = self._opened()
        logger.log_metrics(evaluation_metrics(result), step=update)
        logger.experiment.add_text("samples", "\n\n".join(map(_as_text, result.samples)), update)

    def log_file(self, update: int, path: Path) -> None:
        """Writes an image, or the recipe as text; leaves other files where they are."""
        logger = self._opened()
        if path.suffix == ".png":
            logger.experiment.add_image(path.stem, _pixels(path), update, dataformats="HWC")
        elif path.suffix == ".gin":
            logger.experiment.add_text(path.stem, _indented(path.read_text()), update)

    def _end(self, handle: TensorboardLogger) -> None:
        handle.close()


def _as_text(sample: Mapping[str, object]) -> str:
    """Lists what is known of a completion, as code of Markdown, which leaves it as it is."""
    return "\n\n".join(f"{column}\n\n{_indented(str(sample.get(column, '')))}" for column in SAMPLE_COLUMNS)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _pixels(path: Path) -> object:
    """Reads an image as an array [height, width, 3] of bytes."""
    import numpy
    from PIL import Image

    with Image.open(path) as image:
        return numpy.asarray(image.convert("RGB"))
