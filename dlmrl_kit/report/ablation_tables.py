"""The result of an ablation for the terminal: a row per variant, what limits the numbers, and where the files are."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from dlmrl_kit.experiments.aggregate import RESULTS, SUMMARY, SUMMARY_JSON, Estimate, Line, Summary
from dlmrl_kit.experiments.learning_curves import FILE as CURVES
from dlmrl_kit.report.console import printable
from dlmrl_kit.report.tables import numbers, plain_table, words


def ablation_result(summary: Summary, folder: Path) -> RenderableType:
    """Returns what an ablation found: the table, the failed runs, the notes, and the files in ``folder``."""
    measured = f"accuracy on {summary.measured}" if summary.measured else "no run is finished"
    headings = ("runs", "before", "accuracy [95% interval]", "difference to base [95% interval]")
    table = plain_table(
        words("variant"),
        *(numbers(heading, whole=False) for heading in headings),
        title=f"{summary.design.recipe}: {measured}",
    )
    for line in summary.lines:
        same = f" (the same as {line.same_as})" if line.same_as else ""
        table.add_row(Text(summary.design.label(line.swap) + same), *(Text(cell) for cell in _cells(line)))
    files = {"table": SUMMARY, "as JSON": SUMMARY_JSON, "all numbers": RESULTS, "curves": CURVES}
    return Group(
        table,
        *(Text(f"failed: {job.name}: {printable(job.error)}; see {job.log}", style="red") for job in summary.failed),
        *(Text(f"note: {note}", style="dim") for note in summary.notes),
        *(Text(f"{label:<12} {folder / name}") for label, name in files.items()),
    )


def _cells(line: Line) -> tuple[str, str, str, str]:
    runs = f"{line.finished}" + (f" ({line.failed} failed)" if line.failed else "")
    before = "" if line.before is None else f"{line.before:.1%}"
    difference = "" if line.difference is None else _estimate(line.difference, "{:+.1f}", " points")
    return runs, before, _estimate(line.accuracy, "{:.1f}", "%"), difference


def _estimate(value: Estimate, form: str, unit: str) -> str:
    """Returns a mean with its interval in percent; a dash for the interval of one value, ``none`` for no value."""
    if value.mean is None:
        return "none"
    shown = form.format(100 * value.mean) + unit
    if value.low is None or value.high is None:
        return f"{shown} \u2014"
    return f"{shown} [{form.format(100 * value.low)}, {form.format(100 * value.high)}]"
