"""Accuracy against forwards per completion, of the cells of an evaluation grid: rows of tables, and a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.experiments.evaluation_results import Point
from dlmrl_kit.experiments.learning_curves import look
from dlmrl_kit.training.figure_style import Panel, logarithmic, save, stacked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORWARDS, FIGURE = "forwards.csv", "forwards"
SPREAD = 8
"""How many times more forwards the most expensive cell takes than the cheapest, before their axis is logarithmic."""


def curve_rows(points: Sequence[Point]) -> Iterator[Sequence[object]]:
    """Yields a row of titles, then one for each cell, as numbers."""
    yield ("cell", "panel", "line", "setting", "accuracy", "low", "high", "n", "forwards", "tokens")
    for point in points:
        found = point.accuracy
        numbers = (found.mean, found.low, found.high, found.n, point.forwards, point.tokens)
        yield (point.cell, point.panel, point.line, point.setting, *numbers)


def is_curve(points: Sequence[Point]) -> bool:
    """Says whether a line has several points, so that there is something to draw."""
    return len({(point.panel, point.line) for point in points}) < len(points)


def draw_curve(points: Sequence[Point], folder: Path) -> list[Path]:
    """Draws accuracy against forwards, a panel for each task and length, and writes it in all formats; see ``FIGURE``.

    Raises:
        FileError: a file cannot be written.
    """
    lines = list(dict.fromkeys(point.line for point in points))
    by_panel: dict[str, list[Point]] = {}
    for point in points:
        by_panel.setdefault(point.panel, []).append(point)
    height = 2.7 + 0.2 * sum(_wrapped(line).count("\n") + 1 for line in lines)
    panels: list[Panel] = [(height, partial(_draw, points=own, lines=lines)) for own in by_panel.values()]
    figure = stacked(panels, "Accuracy against forwards per completion")
    return save(figure, folder / FIGURE)


def _draw(axis: Axes, points: Sequence[Point], lines: Sequence[str]) -> None:
    from matplotlib.ticker import PercentFormatter

    for number, line in enumerate(lines):
        own = sorted((point for point in points if point.line == line), key=lambda point: point.forwards)
        if own:
            _draw_line(axis, own, *look(number))
    taken = [point.forwards for point in points]
    if min(taken) * SPREAD <= max(taken):
        logarithmic(axis, "x", base=2)
    else:
        axis.set_xlim(left=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title(points[0].panel)
    axis.set_xlabel("forwards per completion")
    axis.set_ylabel("accuracy, 95% interval")
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.18), borderaxespad=0)  # points may be anywhere inside


def _wrapped(line: str) -> str:
    """Breaks the name of a line, which may hold a long path, to the width of the figure."""
    return textwrap.fill(line, 56)


def _draw_line(axis: Axes, points: Sequence[Point], colour: str, style: str) -> None:
    x = [point.forwards for point in points]
    y = [point.accuracy.mean or 0.0 for point in points]
    ends = [(point.accuracy.low, point.accuracy.high) for point in points]
    axis.plot(
        x, y, color=colour, linestyle=style, linewidth=1.5, marker="o", markersize=4, label=_wrapped(points[0].line)
    )
    for place, centre, (low, high), point in zip(x, y, ends, points, strict=True):
        if low is not None and high is not None:
            axis.plot([place, place], [low, high], color=colour, linewidth=1, alpha=0.6)
        value = point.setting.rpartition(" = ")[2]
        axis.annotate(value, (place, centre), (4, 4), textcoords="offset points", fontsize=7, color=colour)
