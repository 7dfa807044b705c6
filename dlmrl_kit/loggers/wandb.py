"""Weights & Biases, a tracker on the web that also keeps runs on this machine until they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.loggers.base import SAMPLE_COLUMNS, evaluation_metrics, metric_name
from dlmrl_kit.loggers.tracker import Tracker, sample_rows

if TYPE_CHECKING:
    import wandb


@register("logger")
class WandB(Tracker["wandb.Run"]):
    """Sends a run to Weights & Biases; the run folder's ``wandb/`` holds what it sends.

    It gets the metrics by update, evaluations with their interval and a table of completions, the recipe's settings,
    the page of trajectories and the figures. A resumed run goes on with the same run there. Needs the extra ``wandb``.

    Args:
        project: of the run.
        name: of the run; None: the name of the run folder.
        options: more arguments of ``wandb.init``: ``{"mode": "offline"}`` sends nothing (``wandb sync`` does, later),
            ``{"entity": "my-team", "group": "seeds"}``.

    Raises:
        UserError: the package wandb is not installed.
        ValueError: options that the component sets itself.
    """

    package = "wandb"

    def __init__(
        self, project: str = "dlmrl", name: str | None = None, options: Mapping[str, object] | None = None
    ) -> None:
        super().__init__()
        self.project, self.name = project, name
        self.options = self._check_options(options or {}, ("project", "name", "id", "resume", "dir", "settings"))

    def start(self, folder: Path, known: str | None) -> str:
        """Starts a run, or goes on with the one of the id ``known``; returns the id."""
        import wandb

        self._folder = folder
        self._handle = run = wandb.init(
            project=self.project,
            name=self.name or folder.resolve().name,
            id=known,
            resume="allow",
            dir=str(folder),
            settings=wandb.Settings(console="off"),
            **self.options,
        )
        # By a metric, not by wandb's own step, which never goes back: a resumed run logs some updates once more.
        run.define_metric("*", step_metric="update")
        return run.id

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics of an update."""
        self._opened().log({"update": update, **{metric_name(name): value for name, value in metrics.items()}})

    def log_settings(self, settings: Mapping[str, str]) -> None:
        """Keeps the settings as the run's config."""
        self._opened().config.update(dict(settings), allow_val_change=True)  # type: ignore[no-untyped-call]

    def log_evaluation(self, update: int, result: EvalResult) -> None:
        """Logs the interval and the table ``samples``."""
        import wandb

        table = wandb.Table(columns=["update", *SAMPLE_COLUMNS], data=sample_rows(update, result))
        self._opened().log({"update": update, **evaluation_metrics(result), "samples": table})

    def log_file(self, update: int, path: Path) -> None:
        """Shows a page or an image beside the metrics; keeps any other file with the run's."""
        import wandb

        if path.suffix == ".html":
            self._opened().log({"update": update, path.stem: wandb.Html(path.read_text(), inject=False)})
        elif path.suffix == ".png":
            self._opened().log({"update": update, path.stem: wandb.Image(str(path))})
        else:
            self._opened().save(str(path), base_path=str(self._folder), policy="now")

    def _end(self, handle: wandb.Run) -> None:
        handle.finish()
