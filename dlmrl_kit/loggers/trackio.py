"""Trackio, a light tracker that keeps runs on this machine, or in a Space of the hub."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.loggers.base import SAMPLE_COLUMNS, evaluation_metrics, metric_name
from dlmrl_kit.loggers.tracker import Tracker, sample_rows

if TYPE_CHECKING:
    from trackio.run import Run


@register("logger")
class Trackio(Tracker["Run"]):
    """Sends a run to Trackio: on this machine, where ``trackio show`` shows it, or to a Space.

    It gets the metrics by update, evaluations with their interval and a table of completions, the recipe's settings,
    the figures as images, and the page of trajectories and the recipe as artefacts. A resumed run goes on with the same
    run there. Needs the extra ``trackio``.

    Args:
        project: of the run.
        name: of the run, which gets some letters of its own behind it; None: the name of the run folder.
        options: more arguments of ``trackio.init``: ``{"space_id": "me/my-space"}``.

    Raises:
        UserError: the package trackio is not installed.
        ValueError: options that the component sets itself.
    """

    package = "trackio"

    def __init__(
        self, project: str = "dlmrl", name: str | None = None, options: Mapping[str, object] | None = None
    ) -> None:
        super().__init__()
        self.project, self.name = project, name
        self.options = self._check_options(options or {}, ("project", "name", "resume", "config", "embed"))

    def start(self, folder: Path, known: str | None) -> str:
        """Starts a run, or goes on with the one of the name ``known``; returns the name."""
        import trackio

        # Trackio finds runs by name, and run folders in different places may have the same.
        name = known or f"{self.name or folder.resolve().name}-{secrets.token_hex(3)}"
        settings = {"auto_log_gpu": False, "auto_log_cpu": False, **self.options}
        self._handle = trackio.init(project=self.project, name=name, resume="allow", embed=False, **settings)
        return name

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics of an update."""
        self._opened().log({metric_name(name): value for name, value in metrics.items()}, step=update)

    def log_settings(self, settings: Mapping[str, str]) -> None:
        """Keeps the settings as the run's config, which goes out with the first metrics."""
        self._opened().config.update(settings)

    def log_evaluation(self, update: int, result: EvalResult) -> None:
        """Logs the interval and the table ``samples``."""
        import trackio

        table = trackio.Table(columns=["update", *SAMPLE_COLUMNS], data=sample_rows(update, result))
        self._opened().log({**evaluation_metrics(result), "samples": table}, step=update)

    def log_file(self, update: int, path: Path) -> None:
        """Shows an image beside the metrics; keeps any other file as an artefact."""
        import trackio

        if path.suffix == ".png":
            self._opened().log({path.stem: trackio.Image(str(path))}, step=update)
        else:
            self._opened().log_artifact(str(path), type="run")

    def _end(self, handle: Run) -> None:
        handle.finish()  # type: ignore[no-untyped-call]
