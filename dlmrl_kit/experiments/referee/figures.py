"""The figures of a comparison: accuracy against forwards, and the differences to the base, as PNG, SVG and PDF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.experiments.learning_curves import BASE_COLOUR, COLOURS, look, quiet
from dlmrl_kit.experiments.referee.outcomes import Outcome
from dlmrl_kit.experiments.referee.statistics import Row, accuracy_at, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES, DIFFERENCES = "curves", "differences"
FORMATS = ("png", "svg", "pdf")
PLACES = 41
"""Places of the budget at which curves are averaged."""


def draw_curves(outcomes: Sequence[Outcome], base: str, budget: float, folder: Path) -> None:
    """Draws accuracy against forwards, a panel for each task: means over seeds with Student's 95% intervals."""
    from matplotlib.ticker import PercentFormatter

    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    recipes = list(dict.fromkeys(outcome.recipe for outcome in outcomes))
    numbers = {recipe: number for number, recipe in enumerate([base, *(r for r in recipes if r != base)])}
    figure, panels = _panels(len(tasks), width=5.5, height=4.6)
    for task, axis in zip(tasks, panels, strict=True):
        for recipe in recipes:
            runs = [o for o in outcomes if (o.task, o.recipe) == (task, recipe) and o.curve]
            if runs:
                _draw_curve(axis, runs, budget, *look(numbers[recipe]))
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -0.02), min(high, 1.02))  # the interval of a few seeds may reach beyond all shares
        axis.set_title(task, loc="left", fontsize=11)
        axis.set_xlabel("forwards of the model")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("held-out accuracy")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), 2 + 2 * len(tasks))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, columns), frameon=False, fontsize=9)
    _write(figure, folder, CURVES)


def draw_differences(rows: Sequence[Row], folder: Path) -> None:
    """Draws each algorithm's difference to the base with its interval, a panel for each task; the best on top."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    most = max(sum(row.task == task for row in rows) for task in tasks)
    figure, panels = _panels(len(tasks), width=4.6, height=1.2 + 0.3 * most)
    for task, axis in zip(tasks, panels, strict=True):
        own = [(row.recipe, row.difference.value) for row in rows if row.task == task and row.difference is not None]
        known = sorted((value.mean, name, value) for name, value in own if value.mean is not None)
        for place, (centre, _, value) in enumerate(known):
            if value.low is not None and value.high is not None:
                axis.plot([100 * value.low, 100 * value.high], [place, place], color=COLOURS[0], linewidth=1.6)
            axis.plot([100 * centre], [place], "o", color=COLOURS[0], markersize=5)
        axis.set_yticks(range(len(known)), [name for _, name, _ in known], fontsize=9)
        axis.set_ylim(-0.7, max(len(known), 1) - 0.3)
        axis.axvline(0, color=BASE_COLOUR, linewidth=1)
        axis.set_title(task, loc="left", fontsize=11)
        axis.set_xlabel("points of final accuracy above the base")
    _write(figure, folder, DIFFERENCES)


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in panels:
        quiet(axis)
    return figure, panels


def _draw_curve(axis: Axes, runs: Sequence[Outcome], budget: float, colour: str, style: str) -> None:
    places = [budget * number / (PLACES - 1) for number in range(PLACES)]
    found = [mean([accuracy_at(run.curve, place) for run in runs]) for place in places]
    means = [value.mean for value in found if value.mean is not None]
    axis.plot(places, means, color=colour, linestyle=style, linewidth=1.8, label=runs[0].recipe)
    low = [value.low for value in found if value.low is not None]
    high = [value.high for value in found if value.high is not None]
    if low:  # several runs
        axis.fill_between(places, low, high, color=colour, alpha=0.1, linewidth=0)


def _write(figure: Figure, folder: Path, name: str) -> None:
    import matplotlib

    for form in FORMATS:
        image = io.BytesIO()
        # The same numbers give the same files: no dates, and fixed names of the parts of an SVG.
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
        with matplotlib.rc_context({"svg.hashsalt": "dlmrl_kit"}):
            figure.savefig(image, dpi=150, format=form, metadata=metadata)
        write_atomic(folder / f"{name}.{form}", image.getvalue())
