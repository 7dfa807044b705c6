"""Training from Python: a recipe or an algorithm goes in, a run with frames and figures comes out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.component import rebuilt
from dlmrl_kit.core.errors import CheckpointError, RecipeError, UserError
from dlmrl_kit.core.results import EvalResult, RunObserver, RunResult
from dlmrl_kit.core.run_folder import RESULT, read_json
from dlmrl_kit.loggers.metrics_csv import MetricsCSV, read_metrics
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.recipe.of_algorithm import recipe_of
from dlmrl_kit.report.run_console import RichRunObserver
from dlmrl_kit.training import runs as training_runs
from dlmrl_kit.training.curve import curve_figure
from dlmrl_kit.training.evaluation_files import EVALUATIONS, read_evaluations
from dlmrl_kit.training.export import MODEL
from dlmrl_kit.training.figures import run_figures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class TrainedRun(RunResult):
    """A finished run, as an object: what it returned, and its folder as frames and figures.

    Attributes as ``core.results.RunResult``. Frames need pandas, which the extra ``notebook`` installs.
    """

    def __repr__(self) -> str:
        return (
            f"TrainedRun({str(self.folder)!r}, {self.updates} updates, accuracy {self.before.accuracy:.1%} -> "
            f"{self.after.accuracy:.1%})"
        )

    @property
    def metrics(self) -> pd.DataFrame:
        """The metrics of every update: one row per update, one column per metric.

        Raises:
            UserError: pandas is not installed, or the run wrote no ``metrics.csv``.
        """
        pandas = _pandas()
        found = {name: dict(series) for name, series in read_metrics(self.folder).items()}
        own = {name: pandas.Series(series) for name, series in found.items() if not name.startswith("eval/")}
        return pandas.DataFrame(own).rename_axis("update")

    @property
    def evaluations(self) -> pd.DataFrame:
        """The evaluations on held-out examples: one row for each, by the number of updates before it.

        The columns are ``accuracy``, the 95% interval ``low`` to ``high``, ``reward``, ``size``, and the parts of the
        reward.

        Raises:
            UserError: pandas is not installed, or the run's ``evaluations.json`` is damaged.
        """
        entries = read_evaluations(self.folder / EVALUATIONS)
        rows = {update: _row(result) for update, result in sorted(entries.items())}
        return _pandas().DataFrame.from_dict(rows, orient="index").rename_axis("update")

    def figure(self) -> Figure:
        """Draws accuracy, reward, entropy and KL by update, as in ``curve.png``; notebooks show it.

        Raises:
            CheckpointError: the run wrote no ``metrics.csv``.
        """
        from dlmrl_kit.api.figures import ShownFigure

        return curve_figure(self.folder, ShownFigure())

    def figures(self) -> dict[str, Figure]:
        """Draws all figures of the run, by name: ``curve``, ``rewards``, ``steps``, ``updates``; notebooks show them.

        Raises:
            CheckpointError: the run wrote no ``metrics.csv``.
        """
        from dlmrl_kit.api.figures import ShownFigure

        return run_figures(self.folder, ShownFigure)

    def policy(self) -> TransformersPolicy:
        """Loads the trained model, anew at each call."""
        return load_policy(str(self.model))


def train(
    what: Algorithm | Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: bool = True,
    show_samples: int = 0,
    observer: RunObserver | None = None,
) -> TrainedRun:
    """Trains an algorithm or a recipe in a new run folder, as ``dlmrl train`` does.

    An algorithm is trained as its recipe (``recipe_of``), which the run folder holds: the components are made again
    from their settings, so the same algorithm can be trained twice. Without a logger it gets ``MetricsCSV``.

    Args:
        what: an algorithm, a recipe from ``load_recipe``, or the name or path of one.
        out: the run folder, which is created.
        progress: whether to show how the run goes, in a terminal, a notebook or as plain lines.
        show_samples: how many samples of each update are printed beside that.
        observer: is told how the run goes, in place of the display.

    Returns:
        The run: evaluations before and after, ``metrics`` and ``evaluations`` as frames, ``figure()``.

    Raises:
        UserError: the components do not fit together, no recipe can hold the algorithm, the folder holds a run already,
            or training cannot go on.
    """
    recipe = _recipe(what)
    with _observer(progress, show_samples, observer) as watching:
        for note in recipe.notes:
            watching.on_message(note)
        return _run_of(training_runs.train(recipe, Path(out), observer=watching))


def resume(
    folder: str | os.PathLike[str],
    *,
    sets: Sequence[str] = (),
    allow_imports: bool = False,
    accept_changes: bool = False,
    progress: bool = True,
    show_samples: int = 0,
    observer: RunObserver | None = None,
) -> TrainedRun:
    """Goes on with a run from its newest checkpoint, as ``dlmrl train --resume`` does.

    Args:
        folder: the run folder.
        sets: bindings that make the run longer: ``["Trainer.updates = 200"]``.
        allow_imports, accept_changes: as ``training.resume``.
        progress, show_samples, observer: as ``train``.

    Raises:
        UserError: as ``training.resume``.
    """
    with _observer(progress, show_samples, observer) as watching:
        found = training_runs.resume(
            Path(folder),
            observer=watching,
            sets=sets,
            allow_imports=allow_imports,
            accept_changes=accept_changes,
        )
    return _run_of(found)


def load_run(folder: str | os.PathLike[str]) -> TrainedRun:
    """Returns a finished run from its folder, without loading its model.

    Raises:
        CheckpointError: there is no finished run, or its ``result.json`` is damaged.
    """
    path = Path(folder)
    if not (path / RESULT).is_file():
        raise CheckpointError(f"{path} holds no finished run (no {RESULT} in it); finish one with dlmrl_kit.resume")

    def run(data: Any) -> TrainedRun:
        before, after = EvalResult.from_json(data["before"]), EvalResult.from_json(data["after"])
        counts = int(data["updates"]), float(data["seconds"])
        return TrainedRun(path, before, after, *counts, model=path / MODEL, skipped=int(data["skipped"]))

    return read_json(path / RESULT, run)


def _recipe(what: Algorithm | Recipe | str | os.PathLike[str]) -> Recipe:
    if isinstance(what, Recipe):
        return what
    if isinstance(what, Algorithm):
        filled = what if what.loggers else rebuilt(what, **what.fillings, logger=[MetricsCSV()])
        return recipe_of(filled)
    if not isinstance(what, str | os.PathLike):
        raise RecipeError(
            f"train takes an Algorithm, a recipe, or the name or path of one, not a {type(what).__name__}"
        )
    return load_recipe(what)


def _observer(progress: bool, show_samples: int, observer: RunObserver | None) -> RunObserver:
    if show_samples and not (progress and observer is None):
        raise RecipeError("show_samples goes with the display: leave progress on, and give no observer")
    if observer is not None:
        return observer
    return RichRunObserver(show_samples=show_samples) if progress else RunObserver()


def _run_of(result: RunResult) -> TrainedRun:
    return TrainedRun(**{field.name: getattr(result, field.name) for field in fields(result)})


def _row(result: EvalResult) -> dict[str, float]:
    low, high = result.interval()
    own = {"accuracy": result.accuracy, "low": low, "high": high, "reward": result.reward, "size": result.size}
    return {**own, **result.components}


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise UserError("frames need pandas: pip install 'dlmrl-kit[notebook]'") from error
    return pandas
