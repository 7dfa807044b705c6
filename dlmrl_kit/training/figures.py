"""All figures of a run, for papers and pages: the curve, the parts of the reward, the denoising steps, the updates."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmrl_kit.loggers.metrics_csv import FILE as METRICS
from dlmrl_kit.training.curve import NAME as CURVE
from dlmrl_kit.training.curve import by_updates, curve_figure, evaluations_of, finite_metrics, plot_curve
from dlmrl_kit.training.figure_style import (
    FORMATS,
    HELDOUT,
    KL,
    SOLVED,
    TRAINING,
    Panel,
    Series,
    extent,
    from_zero,
    line,
    save,
    stacked,
    whole_numbers,
)
from dlmrl_kit.training.update_lines import STEPS, read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = "figures"

UPDATES: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "ratio": ("Probability ratio, new to old", "ratio", (("ratio", "mean"), ("ratio_max", "largest"))),
    "clip_fraction": ("Share of ratios that is clipped", "share", (("clip_fraction", ""),)),
    "approx_kl": ("KL from the old policy", "nats", (("approx_kl", ""),)),
    "kl": ("KL of the regulariser", "nats", (("kl", ""),)),
    "grad_norm": ("Norm of the gradient, before clipping", "norm", (("grad_norm", ""),)),
    "learning_rate": ("Learning rate", "rate", (("learning_rate", ""),)),
}
"""Panels of the figure ``updates``: by metric, the title, the label of the axis, and the lines with their names."""

ROLLOUT_MAPS: dict[str, tuple[str, str, str]] = {
    "entropy": ("Entropy of each step", "nats", "viridis"),
    "selected": ("Steps that are trained", "share of samples", "magma"),
    "reward": ("Reward of each step's completion", "mean reward", "viridis"),
    "advantage": ("Size of each step's advantage", "mean size", "magma"),
}
"""Panels of the figure ``steps``: by entry of ``steps.jsonl``, title, label of the colours and their map."""

UPDATE_MAPS: dict[str, tuple[str, str, str]] = {
    "ratio": ("Probability ratio of each step, new to old", "mean ratio", "coolwarm"),
    "clip_fraction": ("Share of each step's ratios that is clipped", "share", "magma"),
    "approx_kl": ("KL of each step from the old policy", "nats", "viridis"),
    "kl": ("KL of the regulariser at each step", "nats", "viridis"),
}
"""Panels of the figure ``updates-by-step``, the same. Colours of ratios have their middle at 1."""

LEAST = {"ratio": 0.01, "clip_fraction": 0.01, "approx_kl": 1e-10, "kl": 1e-10}
"""By metric, the least that axis and colours reach from 0, or 1 for ratios: what is smaller is 0, or rounding.

Log-probabilities are rounded at about 1e-5 nats, and a KL is about the square of their difference.
"""


def draw_at_the_end(folder: Path, *, everything: bool) -> list[Path]:
    """Draws ``curve.png`` of a run that ends, if it has a ``metrics.csv``; returns the paths.

    Args:
        folder: the run folder.
        everything: whether the other figures are to be drawn, too, as PNG in ``<folder>/figures``.

    Raises:
        UserError: as ``plot_run``.
    """
    if not (folder / METRICS).is_file():
        return []
    if not everything:
        return [plot_curve(folder)]
    places = {name: (folder if name == CURVE else folder / FOLDER) / name for name in DRAWN}
    return [path for name, figure in run_figures(folder).items() for path in save(figure, places[name], ["png"])]


def plot_run(folder: Path, out: Path | None = None, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draws all figures that a run, finished or not, has the numbers for.

    Args:
        folder: the run folder.
        out: where to; None: ``<folder>/figures``.
        formats: of ``FORMATS``; one file is written for each figure and format.

    Returns:
        The files: ``curve``, ``rewards``, ``steps``, ``updates`` and ``updates-by-step``.

    Raises:
        CheckpointError: ``folder`` has no ``metrics.csv``, or its ``evaluations.json`` is damaged.
        FileError: a file cannot be written.
    """
    where = folder / FOLDER if out is None else out
    return [path for name, figure in run_figures(folder).items() for path in save(figure, where / name, formats)]


def run_figures(folder: Path, make: Callable[[], Figure] | None = None) -> dict[str, Figure]:
    """Draws all figures that a run has the numbers for, by name.

    Args:
        folder: the run folder.
        make: makes empty figures to draw into; None: plain ones of matplotlib.

    Raises:
        CheckpointError: as ``plot_run``.
    """
    from matplotlib.figure import Figure

    drawn = {name: draw(folder, (make or Figure)()) for name, draw in DRAWN.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def rewards_figure(folder: Path, figure: Figure) -> Figure | None:
    """Draws the reward and its parts by update, in training and on held-out examples.

    A part that is the same throughout, such as the share that failed where none did, is named below.

    Args:
        folder: of the run.
        figure: an empty one to draw into.

    Returns:
        The figure; None: the run has no reward.

    Raises:
        CheckpointError: as ``plot_run``.
    """
    metrics, evaluations = finite_metrics(folder), evaluations_of(folder)
    heldout: dict[str, Series] = {"reward": [(update, result.reward) for update, result in evaluations.items()]}
    for update, result in evaluations.items():
        for name, value in result.components.items():
            heldout.setdefault(f"reward/{name}", []).append((update, value))
    names = [name for name in metrics if name == "reward" or name.startswith("reward/")]
    series = {name: (metrics[name], _finite(heldout.get(name, []))) for name in sorted(names)}
    constant = {name: only for name, found in series.items() if (only := _only_value(*found)) is not None}
    constant.pop("reward", None)
    panels: list[Panel] = [
        (1.3, partial(_draw_reward, name=name, training=training, heldout=held, first=not number))
        for number, (name, (training, held)) in enumerate((n, s) for n, s in series.items() if n not in constant)
    ]
    if not panels:
        return None
    drawn = by_updates(panels, f"{folder.resolve().name}: reward and its parts", figure)
    if constant:
        told = ", ".join(f"{name.removeprefix('reward/')} {only:.4g}" for name, only in constant.items())
        drawn.axes[-1].set_xlabel("update\n" + textwrap.fill(f"the same throughout: {told}", 60))
    return drawn


def _finite(series: Series) -> Series:
    return [point for point in sorted(series) if math.isfinite(point[1])]


def _only_value(*several: Series) -> float | None:
    """Returns the value that all of several points have; None if they differ, or there are not two."""
    values = [value for series in several for _, value in series]
    return values[0] if len(values) > 1 and len(set(values)) == 1 else None


def _draw_reward(axis: Axes, name: str, training: Series, heldout: Series, first: bool) -> None:
    axis.set_title("Reward" if name == "reward" else f"Part: {name.removeprefix('reward/')}")
    axis.set_ylabel("mean")
    line(axis, training, TRAINING, "training")
    if heldout:
        axis.plot(*zip(*heldout, strict=True), color=HELDOUT, marker="o", markersize=3.5, label="held-out")
    if first and axis.lines:
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, borderaxespad=0.0)


def updates_figure(folder: Path, figure: Figure) -> Figure | None:
    """Draws ratio, clipping, KL, gradient and learning rate by update; arguments as ``rewards_figure``.

    Returns:
        The figure; None: the run has none of them.

    Raises:
        CheckpointError: as ``plot_run``.
    """
    metrics = finite_metrics(folder)
    panels: list[Panel] = []
    for panel, (title, label, lines) in UPDATES.items():
        found = [(metrics[name], which) for name, which in lines if metrics.get(name)]
        if found:
            least = LEAST.get(panel, 0.0)
            panels.append((1.1, partial(_draw_lines, title=title, label=label, lines=found, least=least)))
    return by_updates(panels, f"{folder.resolve().name}: updates", figure) if panels else None


def _draw_lines(axis: Axes, title: str, label: str, lines: Sequence[tuple[Series, str]], least: float) -> None:
    axis.set_title(title)
    axis.set_ylabel(label)
    for (series, which), colour in zip(lines, (SOLVED, KL), strict=False):
        line(axis, series, colour, which or None)
    from_zero(axis, [value for series, _ in lines for _, value in series], least)
    if len(lines) > 1:
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, borderaxespad=0.0)


def steps_figure(folder: Path, figure: Figure) -> Figure | None:
    """Draws what each denoising step was like: entropy early and late in training, and heat maps by update.

    Arguments as ``rewards_figure``.

    Returns:
        The figure; None: the run has kept nothing by step.
    """
    maps = _heat_maps(folder, ROLLOUT_MAPS)
    if not maps:
        return None
    panels: list[Panel] = [(1.6, partial(_draw_early_and_late, found=maps["entropy"]))] if "entropy" in maps else []
    panels += [(1.5, partial(_draw_heat_map, found=maps[name], name=name, like=ROLLOUT_MAPS[name])) for name in maps]
    return stacked(panels, f"{folder.resolve().name}: denoising steps", figure)


def updates_by_step_figure(folder: Path, figure: Figure) -> Figure | None:
    """Draws ratio, clipping and KL of each denoising step by update, as heat maps; arguments as ``rewards_figure``.

    Returns:
        The figure; None: the loss knew nothing of single steps.
    """
    maps = {name: found for name, found in _heat_maps(folder, UPDATE_MAPS).items() if _of_steps(found, name)}
    panels: list[Panel] = [
        (1.5, partial(_draw_heat_map, found=found, name=name, like=UPDATE_MAPS[name])) for name, found in maps.items()
    ]
    return stacked(panels, f"{folder.resolve().name}: updates by denoising step", figure) if panels else None


def _heat_maps(folder: Path, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns by name the entries that a run has kept by step under it, of those names that have some."""
    entries = read_lines(folder / STEPS) if (folder / STEPS).is_file() else []
    maps = {name: [entry for entry in entries if _has(entry, name)] for name in names}
    return {name: found for name, found in maps.items() if found}


def _of_steps(found: Sequence[dict[str, Any]], name: str) -> bool:
    """Tells whether numbers are of several steps: those of completions that are scored as a whole are at the first."""
    return any(len(entry[name]) == 1 or any(value is not None for value in entry[name][1:]) for entry in found)


def _draw_early_and_late(axis: Axes, found: Sequence[dict[str, Any]]) -> None:
    """Draws the entropy by step, means over the first and over the last tenth of the updates."""
    tenth, values = max(1, len(found) // 10), list[float]()
    for label, part, colour in (("first", found[:tenth], TRAINING), ("last", found[-tenth:], SOLVED)):
        means = _grid([entry["entropy"] for entry in part]).mean(axis=0)
        values += means.compressed().tolist()
        axis.plot(range(1, len(means) + 1), means, color=colour, marker=".", label=f"{label} {_updates(tenth)}")
    axis.set_title("Entropy by step")
    axis.set_xlabel("denoising step")
    axis.set_ylabel("nats")
    from_zero(axis, values)
    whole_numbers(axis.xaxis)
    axis.legend()


def _has(entry: dict[str, Any], name: str) -> bool:
    """Tells whether an entry has numbers by step under a name."""
    values = entry.get(name)
    if not isinstance(values, list) or not all(value is None or isinstance(value, int | float) for value in values):
        return False
    return any(value is not None and math.isfinite(value) for value in values)


def _updates(count: int) -> str:
    return "update" if count == 1 else f"{count} updates"


def _draw_heat_map(axis: Axes, found: Sequence[dict[str, Any]], name: str, like: tuple[str, str, str]) -> None:
    """Draws a list by step of each update as a column of colours, the first step on top; updates without stay empty."""
    title, label, colours = like
    by_update = {entry["update"]: entry[name] for entry in found}
    first, last = min(by_update), max(by_update)
    values = _grid([by_update.get(update, [None]) for update in range(first, last + 1)]).T
    lowest, highest = extent(values.min(), values.max(), LEAST.get(name, 0.0))
    if name == "ratio":
        farthest = max(float(abs(values - 1).max()), LEAST[name])
        lowest, highest = 1 - farthest, 1 + farthest
    edges = (first - 0.5, last + 0.5, len(values) + 0.5, 0.5)
    drawn = axis.imshow(
        values, cmap=colours, vmin=lowest, vmax=highest, aspect="auto", interpolation="nearest", extent=edges
    )
    axis.grid(visible=False)
    axis.set_title(title)
    axis.set_xlabel("update")
    axis.set_ylabel("step")
    whole_numbers(axis.xaxis)
    whole_numbers(axis.yaxis)
    axis.figure.colorbar(drawn, ax=axis, label=label, pad=0.02)


def _grid(rows: Sequence[Sequence[float | None]]) -> Any:
    """Returns rows as a masked array [len(rows), longest]; masked is what is None, or behind the end of a row."""
    import numpy

    width = max(map(len, rows))
    padded = [[math.nan if value is None else value for value in row] + [math.nan] * (width - len(row)) for row in rows]
    return numpy.ma.masked_invalid(numpy.array(padded, dtype=float))


DRAWN: dict[str, Callable[[Path, Figure], Figure | None]] = {
    CURVE: curve_figure,
    "rewards": rewards_figure,
    "steps": steps_figure,
    "updates": updates_figure,
    "updates-by-step": updates_by_step_figure,
}
"""What draws each figure, by its name."""
