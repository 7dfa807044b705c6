"""Draws ``curve.png``, which shows a run at a glance, from its ``metrics.csv``."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.loggers.metrics_csv import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = list[tuple[int, float]]

FILE = "curve.png"
REWARD, ACCURACY, EVAL, ENTROPY, KL = "#8c8c8c", "#4c9bd6", "#c2410c", "#2f855a", "#6b46c1"


def plot_curve(folder: Path) -> Path:
    """Draws ``curve_figure`` into ``<folder>/curve.png``; returns the path.

    Raises:
        CheckpointError: ``folder`` has no ``metrics.csv``.
    """
    write_atomic(folder / FILE, png(curve_figure(folder)))
    return folder / FILE


def png(figure: Figure) -> bytes:
    """Returns a figure as an image."""
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    return image.getvalue()


def curve_figure(folder: Path, figure: Figure | None = None) -> Figure:
    """Draws reward, accuracy, entropy and KL of a run by update.

    Args:
        folder: of the run.
        figure: an empty one to draw into; None: a new one.

    Raises:
        CheckpointError: ``folder`` has no ``metrics.csv``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = {name: [p for p in series if math.isfinite(p[1])] for name, series in read_metrics(folder).items()}
    lower = [_draw_entropy] if "entropy" in metrics else []
    lower += [_draw_kl] if "kl" in metrics else []
    figure = Figure() if figure is None else figure
    figure.set_size_inches(8, 4.2 + 1.7 * len(lower))
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    ratios = [4.2] + [1.7] * len(lower)
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for draw, axis in zip([_draw_learning, *lower], axes, strict=True):
        draw(axis, metrics)
        axis.grid(color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_title(folder.resolve().name, loc="left", fontsize=11)
    figure.align_ylabels()
    axes[-1].set_xlabel("update")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw_learning(axis: Axes, metrics: dict[str, Series]) -> None:
    _line(axis, metrics.get("reward", []), REWARD, "training reward")
    _line(axis, metrics.get("accuracy", []), ACCURACY, "training accuracy, sampled")
    evaluations = metrics.get("eval/accuracy", [])
    if evaluations:
        x, y = zip(*evaluations, strict=True)
        axis.plot(x, y, color=EVAL, linewidth=2, marker="o", markersize=5, label="accuracy on held-out examples")
        ends = evaluations if len(evaluations) < 2 else [evaluations[0], evaluations[-1]]
        for update, value in ends:
            axis.annotate(
                f"{value:.1%}",
                (update, value),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                color=EVAL,
                bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
            )
    axis.set_ylabel("reward, accuracy")
    axis.margins(x=0.04, y=0.12)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=9)


def _draw_entropy(axis: Axes, metrics: dict[str, Series]) -> None:
    _line(axis, metrics["entropy"], ENTROPY, "entropy")
    axis.set_ylabel("entropy (nats)")
    highest = max((value for _, value in metrics["entropy"]), default=0.0)
    axis.set_ylim(0, 1.1 * highest or 1.0)


def _draw_kl(axis: Axes, metrics: dict[str, Series]) -> None:
    _line(axis, metrics["kl"], KL, "KL")
    axis.set_ylabel("KL")


def _line(axis: Axes, series: Series, colour: str, label: str) -> None:
    """Draws a metric; if it has many points, thin, with its running mean over it."""
    if not series:
        return
    x, y = zip(*series, strict=True)
    window = len(series) // 15
    if window < 2:
        axis.plot(x, y, color=colour, linewidth=1.5, label=label, marker="." if len(series) < 10 else None)
        return
    axis.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
    axis.plot(x, running_mean(list(y), window), color=colour, linewidth=1.8, label=label)


def running_mean(values: list[float], window: int) -> list[float]:
    """Averages each value with at most ``window`` neighbours on each side."""
    means = []
    for index in range(len(values)):
        near = values[max(0, index - window) : index + window + 1]
        means.append(sum(near) / len(near))
    return means
