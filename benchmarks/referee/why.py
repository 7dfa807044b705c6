"""What docs/referee.md says of single denoising steps, and its figure, from the CSV files that ``step_data.py`` wrote.

Sentences that say something of the numbers are made here, so that they say what the files say.
"""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.experiments.aggregate import Estimate
from dlmrl_kit.experiments.referee.statistics import mean
from dlmrl_kit.experiments.step_gradients import chance_ratio
from dlmrl_kit.experiments.text_tables import markdown_table
from dlmrl_kit.training.figure_style import ENTROPY, HELDOUT, SOLVED, TRAINING, logarithmic, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parent / "results" / "steps"
FIGURE = FOLDER.parent / "why.png"
OWN, BY_STATE = "LowConfidence", "EntropyOrder"
CLEAR = 0.5
"""A correlation is clear where its whole interval is beyond this."""
Row = dict[str, str]


@functools.cache
def read(name: str) -> list[Row]:
    """Reads a file of ``step_data.py``."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tasks() -> list[str]:
    """Lists the tasks in the order of the files."""
    return list(dict.fromkeys(row["task"] for row in read("steps")))


def column(name: str, task: str, what: str, **wanted: str) -> list[float]:
    """Returns a column of a file by step: of a task, and of rows with the other values ``wanted``."""
    rows = [row for row in read(name) if row["task"] == task and row.get("step") != "all"]
    return [float(row[what]) for row in rows if all(row[key] == value for key, value in wanted.items())]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Returns Spearman's rho and its two-sided p-value, exact over all permutations of up to nine pairs."""
    import numpy as np
    from scipy.stats import rankdata

    one, other = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    rho = float(one @ other) / scale
    permuted = other[_orders(len(one))] @ one / scale
    return rho, float((np.abs(permuted) >= abs(rho) - 1e-9).mean())


@functools.cache
def _orders(number: int) -> list[list[int]]:
    return [list(order) for order in itertools.permutations(range(number))]


def within(task: str, sampler: str) -> Estimate:
    """Returns the correlation within a completion, over prompts."""
    return mean(column("within", task, "rho", sampler=sampler))


def told(found: Estimate) -> str:
    """Says what the steps of high entropy have within a completion, as far as the interval tells."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return "whether steps of higher entropy have larger or smaller gradients cannot be told"
    strength = "clearly" if min(abs(found.low), abs(found.high)) >= CLEAR else "weakly"
    return f"steps of higher entropy have {'larger' if found.low > 0 else 'smaller'} gradients, {strength}"


def blocks() -> dict[str, str]:
    """Returns what stands on the page between the markers of each name."""
    return {"entropy and gradient": _correlations(), "entropy says": _sentences(), "bound": _bounds()}


def _correlations() -> str:
    rows = [
        [
            *("task", "entropy and norm, 8 steps", "entropy and signal to noise, 8 steps", "steps above chance"),
            *(f"within a completion, {sampler}" for sampler in (OWN, BY_STATE)),
        ]
    ]
    for task in tasks():
        entropy = column("steps", task, "entropy")
        by_step = [rank_correlation(entropy, column("steps", task, what)) for what in ("norm", "ratio")]
        above = above_chance(task)
        rows.append(
            [
                task,
                *(f"{rho:+.2f}, p = {p:.3f}" for rho, p in by_step),
                f"{sum(above)} of {len(above)}",
                *(_interval(within(task, sampler)) for sampler in (OWN, BY_STATE)),
            ]
        )
    return markdown_table(rows)


def above_chance(task: str) -> list[bool]:
    """Says of each step whether its signal to noise is above what a gradient without signal has."""
    batches = {int(row["batches"]) for row in read("steps") if row["task"] == task}
    (number,) = batches
    return [ratio > chance_ratio(number) for ratio in column("steps", task, "ratio")]


def _interval(found: Estimate) -> str:
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _sentences() -> str:
    lines = []
    for task in tasks():
        rho, p_value = rank_correlation(column("steps", task, "entropy"), column("steps", task, "ratio"))
        signal = f"by step, entropy and signal to noise have rho {rho:+.2f}"
        signal += ", which may be chance" if p_value > 0.05 else ""
        signal += f" (p = {p_value:.3f})"
        above = above_chance(task)
        shown = f"{sum(above) or 'none'} of {len(above)} steps show a signal above chance"
        shown += ", so that this ratio is mostly noise" * (2 * sum(above) < len(above))
        lines.append(f"- **{task.capitalize()}**: within a completion {told(within(task, OWN))}; {signal}; {shown}.")
    return "\n".join(lines)


def looseness(task: str) -> dict[str, list[float]]:
    """Returns by step how many times larger each side of the bound is than the one before it, where that is not 0."""
    sides = [column("bound", task, what) for what in ("error", "part", "distance_bound", "entropy_bound")]
    names = ("signs cancel", "maxima", "entropy for distance")
    found = {
        name: [larger / smaller for smaller, larger in zip(*pair, strict=True) if smaller > 0]
        for name, pair in zip(names, itertools.pairwise(sides), strict=True)
    }
    return found | {"in all": [bound / part for part, bound in zip(sides[1], sides[3], strict=True) if part > 0]}


def _bounds() -> str:
    import numpy as np

    names = {
        "in all": "bound over mean norm",
        "maxima": "of that, by maxima and triangles",
        "entropy for distance": "of that, by entropy for distance",
        "signs cancel": "mean norm over measured error",
    }
    rows = [["task", *names.values(), "steps with a measured error"]]
    for task in tasks():
        loose = looseness(task)
        shown = [
            f"{np.median(loose[n]):.3g} ({min(loose[n]):.3g} to {max(loose[n]):.3g})" if loose[n] else "-"
            for n in names
        ]
        rows.append([task, *shown, f"{len(loose['signs cancel'])} of {len(column('bound', task, 'error'))}"])
    return f"{_holds()}\n\n{markdown_table(rows)}"


def _holds() -> str:
    part, bound = (
        [value for task in tasks() for value in column("bound", task, what)] for what in ("part", "entropy_bound")
    )
    held = sum(smaller <= larger for smaller, larger in zip(part, bound, strict=True))
    ratios = [ratio for task in tasks() for ratio in looseness(task)["in all"]]
    times = f"{min(ratios):.0f} to {max(ratios):,.0f} times as large"
    return f"The bound is above the mean norm at {held} of {len(part)} steps, and {times}."


def draw() -> None:
    """Draws a panel for each quantity and task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[str, Callable[[Axes, str], None]] = {
        "gradient of the step": _draw_norm,
        "signal to noise": _draw_ratio,
        "entropy in nats": _draw_entropy,
        "share that keeps it": _draw_kept,
        "the bound": _draw_bound,
    }
    with styled():
        figure = Figure(figsize=(4.0 * len(tasks()), 2.3 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), len(tasks()), squeeze=False)
        for line, (label, paint) in zip(axes, panels.items(), strict=True):
            for axis, task in zip(line, tasks(), strict=True):
                paint(axis, task)
                axis.set_title(f"{task}: {label}", fontsize=9)
            if paint is _draw_kept:
                figure.colorbar(line[-1].images[0], ax=line[-1], pad=0.02)
            else:
                line[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))  # points may be anywhere inside
        for axis in axes[-1]:
            axis.set_xlabel("denoising step")
        figure.savefig(FIGURE, dpi=110, metadata={"Software": None})


def _steps(task: str) -> range:
    return range(1, len(column("steps", task, "norm")) + 1)


def _draw_norm(axis: Axes, task: str) -> None:
    for what, colour in (("norm", TRAINING), ("signal", SOLVED), ("noise", HELDOUT)):
        _positive(axis, column("steps", task, what), colour, what)
    logarithmic(axis, "y")


def _draw_ratio(axis: Axes, task: str) -> None:
    batches = int(next(row["batches"] for row in read("steps") if row["task"] == task))
    axis.plot(_steps(task), column("steps", task, "ratio"), color=SOLVED, marker=".", label="measured")
    axis.axhline(chance_ratio(batches), color=TRAINING, linestyle=":", label="without signal, at most (95%)")
    axis.set_ylim(bottom=0)


def _draw_entropy(axis: Axes, task: str) -> None:
    axis.plot(_steps(task), column("steps", task, "entropy"), color=ENTROPY, marker=".", label=OWN)
    axis.set_ylim(bottom=0)


def _draw_kept(axis: Axes, task: str) -> None:
    names = list(dict.fromkeys(row["selector"] for row in read("kept")))
    shares = [column("kept", task, "kept", selector=name) for name in names]
    edges = (0.5, len(shares[0]) + 0.5, len(shares) - 0.5, -0.5)
    axis.imshow(shares, cmap="magma", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=edges)
    axis.grid(visible=False)
    axis.set_yticks(range(len(names)), names, fontsize=7)


def _draw_bound(axis: Axes, task: str) -> None:
    sides = {
        "entropy_bound": (ENTROPY, "B times entropy"),
        "distance_bound": (HELDOUT, "B/2 times distance"),
        "part": (TRAINING, "mean norm"),
        "error": (SOLVED, "error"),
    }
    for what, (colour, label) in sides.items():
        _positive(axis, column("bound", task, what), colour, label)
    logarithmic(axis, "y")


def _positive(axis: Axes, values: Sequence[float], colour: str, label: str) -> None:
    shown = [(step, value) for step, value in enumerate(values, start=1) if value > 0]
    if shown:
        axis.plot(*zip(*shown, strict=True), color=colour, marker=".", label=label)
