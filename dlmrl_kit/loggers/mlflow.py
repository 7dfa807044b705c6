"""MLflow, a tracker on a server of one's own, or in a file."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.loggers.base import SAMPLE_COLUMNS, evaluation_metrics
from dlmrl_kit.loggers.tracker import Tracker, sample_rows

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 100
"""Parameters that MLflow takes at once."""
_LONGEST_NAME = 250
"""Characters of a name that MLflow takes."""
_LONGEST = 6000
"""Characters of a parameter that MLflow takes."""


@register("logger")
class MLflow(Tracker["MlflowClient"]):
    """Sends a run to MLflow.

    It gets the metrics by update, evaluations with their interval, the recipe's settings as parameters, and as
    artefacts a table of completions, the page of trajectories, the recipe and the figures. A resumed run goes on with
    the same run there. Needs the extra ``mlflow``.

    Args:
        experiment: that the run belongs to; made if there is none of the name.
        name: of the run; None: the name of the run folder.
        tracking_uri: of the server, or ``sqlite:///FILE``; None: the environment's ``MLFLOW_TRACKING_URI``, or
            MLflow's default.

    Raises:
        UserError: the package mlflow is not installed.
    """

    package = "mlflow"

    def __init__(self, experiment: str = "dlmrl", name: str | None = None, tracking_uri: str | None = None) -> None:
        super().__init__()
        self.experiment, self.name, self.tracking_uri = experiment, name, tracking_uri
        self._id = ""

    def start(self, folder: Path, known: str | None) -> str:
        """Starts a run, or goes on with the one of the id ``known``; returns the id."""
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking_uri)
        if known is not None:
            client.update_run(known, status="RUNNING")
            self._id = known
        else:
            found = client.get_experiment_by_name(self.experiment)
            own = client.create_experiment(self.experiment) if found is None else found.experiment_id
            self._id = str(client.create_run(own, run_name=self.name or folder.resolve().name).info.run_id)
        self._handle = client
        return self._id

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics of an update: ``reward/cells`` as ``reward.cells``, other odd characters as ``_``."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(_name(name), value, now, update) for name, value in metrics.items()]
        self._opened().log_batch(self._id, metrics=found)

    def log_settings(self, settings: Mapping[str, str]) -> None:
        """Keeps the settings as parameters; one that has changed since keeps its first value, as MLflow has it."""
        from mlflow.entities import Param

        client = self._opened()
        known = client.get_run(self._id).data.params
        named = {_name(key): text[:_LONGEST] for key, text in settings.items()}
        new = [Param(name, text) for name, text in named.items() if name not in known]
        for first in range(0, len(new), _BATCH):
            client.log_batch(self._id, params=new[first : first + _BATCH])

    def log_evaluation(self, update: int, result: EvalResult) -> None:
        """Logs the interval, and the completions as ``samples/update-N.json``, a table."""
        self.log(update, evaluation_metrics(result))
        table = {"columns": ["update", *SAMPLE_COLUMNS], "data": sample_rows(update, result)}
        self._opened().log_dict(self._id, table, f"samples/update-{update:06}.json")

    def log_file(self, update: int, path: Path) -> None:
        """Keeps the file as an artefact."""
        self._opened().log_artifact(self._id, str(path))

    def _end(self, handle: MlflowClient) -> None:
        handle.set_terminated(self._id)


def _name(name: str) -> str:
    """Returns a name as MLflow takes it.

    It makes a path of a name, and no file can be a folder, too: ``reward/cells`` beside ``reward`` is ``reward.cells``.
    """
    return re.sub(r"[^A-Za-z0-9_\-. :]", "_", name.replace("/", ".")).strip(".")[:_LONGEST_NAME] or "_"
