"""Draws ``curve.png``, which shows a run at a glance: held-out accuracy, training, entropy and KL by update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.training.evaluation_files import EVALUATIONS, read_evaluations
from dlmrl_kit.training.figure_style import (
    ENTROPY,
    HELDOUT,
    KL,
    SOLVED,
    TRAINING,
    Panel,
    Series,
    by_update,
    from_zero,
    line,
    save,
    stacked,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "curve"
FILE = f"{NAME}.png"


def plot_curve(folder: Path) -> Path:
    """Draws ``curve_figure`` into ``<folder>/curve.png``; returns the path.

    Raises:
        CheckpointError: ``folder`` has no ``metrics.csv``.
    """
    return save(curve_figure(folder), folder / NAME, ["png"])[0]


def curve_figure(folder: Path, figure: Figure | None = None) -> Figure:
    """Draws a run by update: held-out accuracy with its 95% interval, training reward and accuracy, entropy and KL.

    Args:
        folder: of the run.
        figure: an empty one to draw into; None: a new one.

    Raises:
        CheckpointError: ``folder`` has no ``metrics.csv``, or its ``evaluations.json`` is damaged.
    """
    metrics = finite_metrics(folder)
    evaluations = evaluations_of(folder)
    panels: list[tuple[float, Callable[[Axes], None]]] = []
    if "eval/accuracy" in metrics:
        panels.append((1.9, partial(_draw_heldout, series=metrics["eval/accuracy"], evaluations=evaluations)))
    panels.append((1.9, partial(_draw_training, metrics=metrics)))
    if "entropy" in metrics:
        panels.append((1.1, partial(_draw_measure, series=metrics["entropy"], colour=ENTROPY, title="Entropy")))
    if "kl" in metrics:
        panels.append((1.1, partial(_draw_measure, series=metrics["kl"], colour=KL, title="KL of the regulariser")))
    return by_updates(panels, folder.resolve().name, figure)


def by_updates(panels: list[Panel], title: str, figure: Figure | None = None) -> Figure:
    """Draws panels with one x axis, of updates, for all; arguments as ``stacked``."""
    drawn = stacked(panels, title, figure)
    by_update(drawn.axes)
    return drawn


def finite_metrics(folder: Path) -> dict[str, Series]:
    """Reads the metrics of a run, without values that are NaN or infinite; raises as ``read_metrics``."""
    return {name: [p for p in series if math.isfinite(p[1])] for name, series in read_metrics(folder).items()}


def evaluations_of(folder: Path) -> dict[int, EvalResult]:
    """Reads the evaluations of a run by update; none if it has no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / EVALUATIONS
    return read_evaluations(path) if path.is_file() else {}


def _draw_heldout(axis: Axes, series: Series, evaluations: Mapping[int, EvalResult]) -> None:
    """Draws the accuracy by update; its interval where the evaluation is known."""
    axis.set_title("Accuracy on held-out examples" + (", 95% interval" if evaluations else ""))
    axis.set_ylabel("accuracy")
    if not series:
        return
    x, y = zip(*series, strict=True)
    known = {update: evaluations[update].interval() for update in x if update in evaluations}
    if known:
        low, high = zip(*known.values(), strict=True)
        axis.fill_between(list(known), low, high, color=HELDOUT, alpha=0.15, linewidth=0)
        axis.vlines(list(known), low, high, color=HELDOUT, alpha=0.5, linewidth=1)
    axis.plot(x, y, color=HELDOUT, linewidth=1.8, marker="o", markersize=4)
    axis.margins(x=0.06, y=0.2)
    rises = len(y) < 2 or y[1] > y[0]
    _label(axis, series[0], (6, -11 if rises else 6), "left")
    if len(series) > 1:
        low, high = known.get(x[-1], (y[-1], y[-1]))
        _label(axis, (x[-1], high if y[-1] >= y[-2] else low), (2, 4 if y[-1] >= y[-2] else -12), "right", y[-1])


def _label(axis: Axes, at: tuple[int, float], offset: tuple[int, int], side: str, value: float | None = None) -> None:
    """Writes an accuracy, by default the one that it stands at, ``offset`` points away from there."""
    text = f"{at[1] if value is None else value:.1%}"
    axis.annotate(text, at, offset, textcoords="offset points", ha=side, color=HELDOUT)


def _draw_training(axis: Axes, metrics: dict[str, Series]) -> None:
    axis.set_title("Training rollouts")
    line(axis, metrics.get("reward", []), TRAINING, "reward")
    line(axis, metrics.get("accuracy", []), SOLVED, "accuracy")
    axis.set_ylabel("mean")
    axis.margins(x=0.06)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower right", ncols=2)


def _draw_measure(axis: Axes, series: Series, colour: str, title: str) -> None:
    """Draws what is never negative, from 0 up."""
    line(axis, series, colour)
    axis.set_title(title)
    axis.set_ylabel("nats")
    axis.margins(x=0.06)
    from_zero(axis, [value for _, value in series])
