"""What was measured by denoising step, as CSV and as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.experiments.aggregate import csv_text
from dlmrl_kit.experiments.step_measures import StepMeasure, StepReport
from dlmrl_kit.training.figure_style import (
    ENTROPY,
    HELDOUT,
    SOLVED,
    TRAINING,
    Panel,
    from_zero,
    logarithmic,
    save,
    stacked,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS, KEPT, FIGURE = "steps.csv", "kept.csv", "steps"
NUMBERS = tuple(name for name in StepMeasure.__dataclass_fields__ if name != "step")
ALL = "all"
"""What the row of the whole gradient has in place of a step."""


def write_steps(report: StepReport, folder: Path) -> list[Path]:
    """Writes ``steps.csv``, ``kept.csv`` and the figure ``steps`` in all formats; returns the paths.

    Raises:
        FileError: a file cannot be written.
    """
    what = (report.recipe, report.model, report.batches)
    rows = [(*what, step_name(m), *(getattr(m, name) for name in NUMBERS)) for m in report.steps]
    titles = ("recipe", "model", "batches", "step", *NUMBERS)
    write_atomic(folder / STEPS, csv_text([titles, *rows]))
    kept = [
        (name, step, share) for name, shares in report.selectors.items() for step, share in enumerate(shares, start=1)
    ]
    write_atomic(folder / KEPT, csv_text([("selector", "step", "kept"), *kept]))
    title = f"{report.recipe} at {report.model}: steps of {report.batches} batches"
    return [folder / STEPS, folder / KEPT, *save(stacked(_panels(report), title), folder / FIGURE)]


def step_name(measure: StepMeasure) -> str:
    """Returns what tables call a step: its number, or ``ALL``."""
    return ALL if measure.step is None else str(measure.step)


def _panels(report: StepReport) -> list[Panel]:
    lines = partial(_draw_lines, steps=report.steps[:-1])
    return [
        (0.8 + 0.28 * len(report.selectors), partial(_draw_kept, report=report)),
        (1.6, partial(lines, lines=GRADIENT, title="Gradient of each step's part", label="norm", log=True)),
        (1.4, partial(lines, lines=RATIO, title="Signal to noise of a batch", label="ratio", chance=report.chance)),
        (1.2, partial(lines, lines=ENTROPIES, title="Entropy", label="nats")),
        (1.4, partial(lines, lines=VARIANCES, title="Variance of reward and advantage", label="variance", last=True)),
    ]


Lines = dict[str, tuple[str, str]]
"""By attribute of ``StepMeasure``, a colour and what a legend calls the line."""
GRADIENT: Lines = {"norm": (TRAINING, "norm"), "signal": (SOLVED, "signal"), "noise": (HELDOUT, "noise")}
RATIO: Lines = {"ratio": (SOLVED, "measured")}
ENTROPIES: Lines = {"entropy": (ENTROPY, "entropy")}
VARIANCES: Lines = {"reward_variance": (TRAINING, "reward"), "advantage_variance": (SOLVED, "advantage")}


def _draw_kept(axis: Axes, report: StepReport) -> None:
    shares = [[float("nan") if share is None else share for share in kept] for kept in report.selectors.values()]
    edges = (0.5, len(report.steps) - 0.5, len(shares) - 0.5, -0.5)
    drawn = axis.imshow(shares, cmap="magma", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=edges)
    axis.grid(visible=False)
    axis.set_yticks(range(len(shares)), list(report.selectors))
    axis.set_title("Steps that are kept")
    whole_numbers(axis.xaxis)
    axis.figure.colorbar(drawn, ax=axis, label="share", pad=0.02)


def _draw_lines(
    axis: Axes,
    steps: Sequence[StepMeasure],
    lines: Lines,
    title: str,
    label: str,
    *,
    log: bool = False,
    chance: float | None = None,
    last: bool = False,
) -> None:
    values = [] if chance is None else [chance]
    for name, (colour, called) in lines.items():
        known = [(m.step, getattr(m, name)) for m in steps if getattr(m, name) is not None]
        shown = [(step, value) for step, value in known if value > 0 or not log]
        values += [value for _, value in shown]
        if shown:
            axis.plot(*zip(*shown, strict=True), color=colour, marker=".", label=called)
    if chance is not None:
        axis.axhline(chance, color=TRAINING, linestyle=":", label="without signal, at most (95%)")
    if len(axis.lines) > 1:
        axis.legend(loc="best")
    if log and axis.lines:
        logarithmic(axis, "y")
    else:
        from_zero(axis, values)
    axis.set_title(title)
    axis.set_ylabel(label)
    axis.set_xlim(0.5, len(steps) + 0.5)
    whole_numbers(axis.xaxis)
    if last:
        axis.set_xlabel("denoising step")
