"""The loggers of TorchRL: Weights & Biases, MLflow, Trackio, CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.run_folder import read_json
from dlmrl_kit.core.validate import check
from dlmrl_kit.loggers.base import Logger, metric_name

if TYPE_CHECKING:
    from torchrl.record.loggers.common import Logger as Backend

BACKENDS = ("wandb", "mlflow", "trackio", "csv")
RESUMABLE = frozenset({"wandb"})
"""Backends whose series TorchRL can continue; the others start a new one when a run is resumed."""


class Forwarding(Logger):
    """Base class of loggers that hand metrics to one of TorchRL's, which ``open`` puts into ``_logger``."""

    _logger: Backend | None = None

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Hands on the metrics."""
        if self._logger is None:
            raise self._not_open()
        self._logger.log_metrics({metric_name(name): value for name, value in metrics.items()}, step=update)

    def close(self) -> None:
        """Flushes and closes TorchRL's logger."""
        if self._logger is not None:
            self._logger.close()
            self._logger = None


@register("logger")
class TorchRLLogger(Forwarding):
    """Sends metrics to an experiment tracker through ``torchrl.record.loggers.get_logger``.

    Files go to ``<run>/<backend>/``. A resumed run continues its wandb run; the other backends get a second series. The
    package of the backend is yours to install (``pip install wandb``).

    Args:
        backend: ``wandb``, ``mlflow``, ``trackio`` or ``csv``.
        name: of the experiment; default: the name of the run folder.
        options: keyword arguments of the backend's TorchRL logger, e.g. ``{"project": "egspo", "offline": True}`` for
            wandb and ``{"project": "egspo"}`` for trackio.

    Raises:
        ValueError: an unknown backend, or options for ``csv``, which has none.
    """

    def __init__(
        self, backend: str = "wandb", name: str | None = None, options: Mapping[str, object] | None = None
    ) -> None:
        check(backend in BACKENDS, self, "backend", backend, f"one of {', '.join(BACKENDS)}")
        check(backend != "csv" or not options, self, "options", options, "empty for csv")
        self.backend = backend
        self.name = name
        self.options = dict(options or {})

    def open(self, folder: Path, first_update: int) -> None:
        """Starts the backend, or continues its run where it can.

        Raises:
            UserError: the backend's package is not installed.
        """
        self.close()
        directory = folder / self.backend
        directory.mkdir(parents=True, exist_ok=True)
        state_file = directory / "dlmrl_logger.json"
        options: dict[str, object] = {f"{self.backend}_kwargs": dict(self.options)} if self.options else {}
        if first_update > 0 and state_file.is_file():
            advice = "remove it: the backend then starts a run of its own"
            options["state_dict"] = read_json(state_file, lambda found: {**found}, advice)
        self._logger = torchrl_logger(self.backend, str(directory), self.name or folder.resolve().name, **options)
        if self.backend in RESUMABLE:
            write_atomic(state_file, json.dumps(self._logger.state_dict()))


def torchrl_logger(backend: str, directory: str, name: str, **options: object) -> Backend:
    """Returns the logger that ``torchrl.record.loggers.get_logger`` makes of these arguments.

    Raises:
        UserError: the package of the backend is not installed.
    """
    from torchrl.record.loggers import get_logger

    try:
        return get_logger(backend, directory, name, **options)
    except ImportError as error:
        raise UserError(f"logger backend {backend!r} is not installed ({error}); pip install {backend}") from error
