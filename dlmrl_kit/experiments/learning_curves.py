"""Draws ``curves.png``, the learning curves of an ablation: a colour per variant, with a band over its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.experiments.aggregate import Summary, interval, metrics_of
from dlmrl_kit.training.figure_style import Series, png, running_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "curves.png"
PANELS = {"eval/accuracy": "accuracy on held-out examples", "reward": "training reward, smoothed"}
BASE_COLOUR = "#4d4d4d"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b")
"""Colours of the variants, which colour-blind people can tell apart, too (Okabe and Ito)."""

STYLES = ("-", "--", ":")
"""Line styles; each time the colours start over, the next one is taken."""


def plot_curves(summary: Summary, folder: Path) -> Path:
    """Draws the finished runs; returns the path of ``<folder>/curves.png``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    runs = {v.name: _curves(summary, v.name) for v in summary.design.variants}
    for axis, (metric, label) in zip(panels, PANELS.items(), strict=True):
        for number, (name, curves) in enumerate(runs.items()):
            colour, style = look(number)
            lines = [curve[metric] for curve in curves if metric in curve]
            _draw(axis, lines, metric, summary.design.label(name), colour, style)
        axis.set_title(label, loc="left", fontsize=11)
        axis.set_xlabel("update")
        axis.xaxis.get_major_locator().set_params(integer=True)
        quiet(axis)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(_title(summary), x=0.01, ha="left", fontsize=10, color="#555555")
    write_atomic(folder / FILE, png(figure, dpi=150))
    return folder / FILE


def _title(summary: Summary) -> str:
    seeds = len(summary.design.seeds)
    band = f"mean of {seeds} seeds, shaded its 95% bootstrap interval" if seeds > 1 else "one seed"
    return f"{summary.design.recipe}: {band}"


def _curves(summary: Summary, name: str) -> list[dict[str, Series]]:
    return [metrics_of(job) for job in summary.jobs if job.status == "finished" and job.variant.name == name]


def quiet(axis: Axes) -> None:
    """Gives axes a light grid behind what is drawn, and no frame at the top and the right."""
    axis.grid(color="#e5e5e5", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def look(number: int) -> tuple[str, str]:
    """Returns colour and line style: of the base for 0, else of the variant of that number."""
    if number == 0:
        return BASE_COLOUR, "-"
    turn, place = divmod(number - 1, len(COLOURS))
    return COLOURS[place], STYLES[turn % len(STYLES)]


def _draw(axis: Axes, runs: Sequence[Series], metric: str, label: str, colour: str, style: str) -> None:
    """Draws the mean over runs, at the steps that all of them have, with its bootstrap band."""
    finite = [{step: value for step, value in series if math.isfinite(value)} for series in runs]
    steps = sorted(set.intersection(*(set(series) for series in finite))) if finite else []
    if not steps:
        return
    # Rewards of single updates are noisy, so each run is smoothed before runs are averaged.
    window = 0 if metric.startswith("eval/") else len(steps) // 15
    rows = [running_mean([series[step] for step in steps], window) for series in finite]
    means = [math.fsum(column) / len(column) for column in zip(*rows, strict=True)]
    marker = "o" if len(steps) < 20 else None
    axis.plot(steps, means, color=colour, linestyle=style, linewidth=1.8, marker=marker, markersize=4, label=label)
    if len(rows) > 1:
        low, high = interval(rows, resamples=999)
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
