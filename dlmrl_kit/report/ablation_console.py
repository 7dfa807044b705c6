"""An ablation in the terminal: what runs, or plain lines where the output is no terminal; the summary as a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dlmrl_kit.experiments.aggregate import RESULTS, SUMMARY, SUMMARY_JSON, Estimate, Line, Summary
from dlmrl_kit.experiments.curves import FILE as CURVES
from dlmrl_kit.experiments.design import Design
from dlmrl_kit.experiments.runs import Job, Observer
from dlmrl_kit.report.run_console import printable

PLAIN_PARTS = 4
"""Lines of progress per run where the output is no terminal."""


class RichObserver(Observer):
    """Shows the runs of an ablation: a bar for all, a bar for each that runs now, a line for each that ended."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._jobs: list[Job] = []
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._parts: dict[str, int] = {}

    def on_start(self, jobs: list[Job], parallel: int, threads: int) -> None:
        """Says how many runs there are; starts the display on a terminal."""
        self._jobs = jobs
        finished = sum(job.status == "finished" for job in jobs)
        known = f", {finished} finished already" if finished else ""
        plural = "s" if threads > 1 else ""
        _say(self.console, f"{len(jobs)} runs{known}; {parallel} at a time, {threads} thread{plural} each")
        if self.console.is_terminal and finished < len(jobs):
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeElapsedColumn(),
                console=self.console,
                expand=True,
            )
            self._tasks[""] = self._progress.add_task("all", total=len(jobs), completed=finished, unit="runs")
            self._progress.start()

    def on_status(self, job: Job) -> None:
        """Adds or removes the run's bar, and says how it ended."""
        if job.status == "running":
            self._add(job)
            return
        self._say(
            f"{job.name}: finished, {_change(job)}" if job.status == "finished" else f"{job.name}: {_failed(job)}"
        )
        if self._progress is not None:
            self._progress.remove_task(self._tasks.pop(job.name))
            self._progress.update(
                self._tasks[""], completed=sum(j.status in ("finished", "failed") for j in self._jobs)
            )

    def on_progress(self, job: Job) -> None:
        """Moves the run's bar, or prints a line now and then."""
        if self._progress is not None:
            self._progress.update(self._tasks[job.name], completed=job.done)
            return
        part = PLAIN_PARTS * job.done // job.variant.updates
        if self._parts.get(job.name, 0) < part < PLAIN_PARTS:
            self._parts[job.name] = part
            self._say(f"{job.name}: {job.done} of {job.variant.updates} updates")

    def on_end(self) -> None:
        """Ends the display."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _add(self, job: Job) -> None:
        if self._progress is None:
            self._say(f"{job.name}: {'goes on' if (job.folder / 'recipe.gin').is_file() else 'starts'}")
            return
        label = Text(job.name).markup
        self._tasks[job.name] = self._progress.add_task(
            label, total=job.variant.updates, completed=job.done, unit="updates"
        )

    def _say(self, text: str) -> None:
        _say(self._progress.console if self._progress is not None else self.console, text)


def announce(design: Design, console: Console) -> None:
    """Says what is compared, what was verified, and the notes."""
    _say(console, f"{design.recipe}: {len(design.variants)} variants by {len(design.seeds)} seeds")
    for variant in design.variants:
        if variant.difference is not None:
            _say(console, f"verified: {variant.name} {variant.difference}")
    for note in design.notes:
        _say(console, f"note: {note}")


def page(summary: Summary, folder: Path) -> RenderableType:
    """The table, what limits it, the failed runs, and where everything is."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=_heading(summary), title_justify="left", title_style="")
    table.add_column("variant", overflow="fold")
    for heading in ("runs", "before", "accuracy \\[95% interval]", "difference to base \\[95% interval]"):
        table.add_column(heading, justify="right")
    for line in summary.lines:
        table.add_row(Text(summary.design.label(line.swap)), *_cells(line))
    parts: list[RenderableType] = [table]
    parts += [Text(f"failed: {job.name}: {printable(job.error)}; see {job.log}", style="red") for job in summary.failed]
    parts += [Text(f"note: {note}", style="dim") for note in summary.notes]
    files = {"table": SUMMARY, "as JSON": SUMMARY_JSON, "all numbers": RESULTS, "curves": CURVES}
    parts += [Text(f"{label:<12} {folder / name}") for label, name in files.items()]
    return Group(*parts)


def _heading(summary: Summary) -> str:
    heading = f"accuracy on {summary.measured}" if summary.measured else "no run is finished"
    return Text(f"{summary.design.recipe}: {heading}").markup


def _cells(line: Line) -> Iterable[RenderableType]:
    runs = f"{line.finished}" + (f" ({line.failed} failed)" if line.failed else "")
    before = "" if line.before is None else f"{line.before:.1%}"
    difference = "" if line.difference is None else _estimate(line.difference, "{:+.1f}", " points")
    return (Text(runs), Text(before), Text(_estimate(line.accuracy, "{:.1f}", "%")), Text(difference))


def _estimate(value: Estimate, form: str, unit: str) -> str:
    if value.mean is None:
        return "none"
    shown = form.format(100 * value.mean) + unit
    if value.low is None or value.high is None:
        return f"{shown} \u2014"
    return f"{shown} [{form.format(100 * value.low)}, {form.format(100 * value.high)}]"


def _change(job: Job) -> str:
    result = job.result()
    return f"accuracy {result['before']['accuracy']:.1%} -> {result['after']['accuracy']:.1%}"


def _failed(job: Job) -> str:
    return f"failed: {job.error}; see {job.log}"


def _say(console: Console, text: str) -> None:
    console.print(Text(printable(text)), soft_wrap=True)
