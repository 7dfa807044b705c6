"""What the figures of a run share: their width, fonts and colours, lines with their running mean, and file formats.

A figure is as wide as a column of a paper, so that its text can be read in print and on a phone.
"""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dlmrl_kit.core.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Series = list[tuple[int, float]]
Panel = tuple[float, "Callable[[Axes], None]"]
"""Height in inches, and what draws it."""

WIDTH = 5.0
"""Inches."""
_LETTERS = 52
"""Of a title, in a line."""
FORMATS = ("png", "pdf", "svg")
TRAINING, SOLVED, HELDOUT, ENTROPY, KL = "#6b7280", "#2f7fbf", "#c2410c", "#2f855a", "#6b46c1"

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.7,
    "text.parse_math": False,  # names of runs and rewards are no formulas
    "pdf.fonttype": 42,  # TrueType, which journals take
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Within the context figures are drawn, and saved, in the kit's style."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def stacked(panels: Sequence[Panel], title: str, figure: Figure | None = None) -> Figure:
    """Draws panels one above the other, by update.

    Args:
        panels: one or more.
        title: of the figure.
        figure: an empty one to draw into; None: a new one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with styled():
        figure = Figure() if figure is None else figure
        heights = [height for height, _ in panels]
        figure.set_size_inches(WIDTH, 0.7 + sum(heights))
        figure.set_layout_engine("constrained", h_pad=0.05)
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for (_, draw), axis in zip(panels, axes, strict=True):
            draw(axis)
        figure.suptitle(textwrap.fill(title, _LETTERS), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.align_ylabels(axes)
    return figure


def by_update(axes: Sequence[Axes]) -> None:
    """Gives axes the same whole updates as their x axis, named at the lowest of them."""
    for axis in axes[1:]:
        axis.sharex(axes[0])
    for axis in axes[:-1]:
        axis.tick_params(labelbottom=False)
    axes[-1].set_xlabel("update")
    whole_numbers(axes[-1].xaxis)


def extent(lowest: float, highest: float, least: float = 0.0) -> tuple[float, float]:
    """Returns from where to where to show values: they and 0, and at least ``least``, or 1 where all is 0."""
    low, high = min(0.0, float(lowest)), max(0.0, float(highest))
    return low, max(high, low + least) if least or high > low else low + 1.0


def from_zero(axis: Axes, values: Sequence[float], least: float = 0.0) -> None:
    """Shows an axis by the ``extent`` of the values that are drawn, with room for the line at the highest of them."""
    known = [value for value in values if math.isfinite(value)]
    low, high = extent(min(known, default=0.0), max(known, default=0.0), least)
    axis.set_ylim(1.1 * low, high + 0.1 * (high - low))


def whole_numbers(axis: Axis) -> None:
    """Puts the ticks of an axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def logarithmic(axes: Axes, which: Literal["x", "y"], base: int = 10) -> None:
    """Makes an axis on which something is drawn logarithmic, with plain numbers at its ticks.

    What matplotlib writes there by itself is a formula, which figures of this style show as it is spelt.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    few = base == 10 and high < 100 * low
    axis.set_major_locator(LogLocator(base, (1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def line(axis: Axes, series: Series, colour: str, label: str | None = None) -> None:
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


def image(figure: Figure, format: str = "png") -> bytes:
    """Returns a figure as the content of a file of one of the ``FORMATS``."""
    with styled():
        if format == "png":
            return png(figure, dpi=200)
        content = io.BytesIO()
        figure.savefig(content, dpi=200, format=format)
    return content.getvalue()


def png(figure: Figure, dpi: float) -> bytes:
    """Returns a figure as the content of a PNG file, as ``savefig`` would.

    That draws a figure with a layout twice, the first time for the layout alone, which the second would do as well.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content, before = io.BytesIO(), figure.dpi
    figure.set_dpi(dpi)
    try:
        FigureCanvasAgg(figure).print_png(content)
    finally:
        figure.set_dpi(before)
    return content.getvalue()


def save(figure: Figure, path: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes a figure in some formats, each beside ``path`` with the ending of its name; returns the paths.

    Raises:
        FileError: a file cannot be written.
    """
    paths = [path.with_name(f"{path.name}.{format}") for format in formats]
    for format, file in zip(formats, paths, strict=True):
        write_atomic(file, image(figure, format))
    return paths
