"""A comparison in the terminal: what is compared, a bar per run, the settings that were chosen, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from dlmrl_kit.experiments.referee.again import Again
from dlmrl_kit.experiments.referee.claims import claims_table
from dlmrl_kit.experiments.referee.entries import Entry
from dlmrl_kit.experiments.referee.figures import CURVES, DIFFERENCES
from dlmrl_kit.experiments.referee.records import RUNS
from dlmrl_kit.experiments.referee.report import CLAIMS, CSV, LATEX, MARKDOWN, Report, rank_table, task_table
from dlmrl_kit.experiments.referee.run import CompareObserver
from dlmrl_kit.experiments.referee.spec import Spec
from dlmrl_kit.experiments.runs import Job
from dlmrl_kit.report.ablation_console import RichAblationObserver
from dlmrl_kit.report.console import printable, say
from dlmrl_kit.report.tables import numbers, plain_table, words


class RichCompareObserver(RichAblationObserver, CompareObserver):
    """Shows a comparison as ``RichAblationObserver`` shows an ablation."""

    def on_plan(self, spec: Spec, entries: Sequence[Entry]) -> None:
        """Says what is compared, and how many updates the budget is for each."""
        size = f"{len(spec.recipes)} algorithms by {len(spec.tasks)} tasks by {spec.seeds} seeds"
        say(self.console, f"{size}, {spec.forwards:,} forwards for each run")
        for entry in entries:
            tuned = f", {len(entry.variants)} settings to choose among" if len(entry.variants) > 1 else ""
            say(self.console, f"{entry.name}: {entry.updates} updates of {entry.forwards:,.0f} forwards{tuned}")
            for text in entry.skipped:
                say(self.console, f"note: --set {text} concerns no component of {entry.name}")

    def on_tuned(self, entry: Entry, point: int, scores: Sequence[float]) -> None:
        """Says what was chosen."""
        found = ", ".join(
            f"{'; '.join(settings) or 'as it is'} {score:.1%}"
            for settings, score in zip(entry.points, scores, strict=True)
        )
        say(
            self.console, f"{entry.name}: chose {'; '.join(entry.points[point]) or 'it as it is'} (validation: {found})"
        )


def comparison_result(report: Report, failed: Sequence[Job], folder: Path) -> RenderableType:
    """Returns what a comparison found: a table for each task, the ranks, and the files in ``folder``."""
    tables = [_table(task_table(report, task), task) for task in report.tasks]
    files = {"tables": MARKDOWN, "for LaTeX": LATEX, "all numbers": CSV, "runs": RUNS}
    files |= {"claims": CLAIMS} if report.verdicts else {}
    files |= {"curves": f"{CURVES}.png", "differences": f"{DIFFERENCES}.png"}
    return Group(
        *tables,
        _table(rank_table(report), "ranks over tasks and seeds"),
        *([_table(claims_table(report.verdicts), "claims")] if report.verdicts else []),
        *(Text(f"failed: {job.name}: {printable(job.error)}; see {job.log}", style="red") for job in failed),
        *(Text(f"note: {note}", style="dim") for note in report.notes()),
        *(Text(f"{label:<12} {folder / name}") for label, name in files.items()),
    )


def again_result(found: Again) -> RenderableType:
    """Returns both curves of a run that was done again, and whether they are the same."""
    points = zip(found.before.curve, found.now.curve, strict=True)
    rows = [
        (f"{before.update}", f"{before.forwards:,.0f}", f"{before.accuracy:.1%}", f"{now.accuracy:.1%}")
        for before, now in points
    ]
    verdict = "the same in all digits" if found.same else "not the same"
    return Group(
        _table([("update", "forwards", "accuracy in the table", "now"), *rows], found.before.run), Text(verdict)
    )


def _table(rows: Sequence[Sequence[str]], title: str) -> RenderableType:
    titles, *lines = rows
    table = plain_table(words(titles[0]), *(numbers(heading, whole=False) for heading in titles[1:]), title=title)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table
