"""An ablation in the terminal while it goes on: a bar per run, or plain lines where the output is no terminal."""

from __future__ import annotations

from rich.console import Console

from dlmrl_kit.experiments.design import Design
from dlmrl_kit.experiments.runs import AblationObserver, Job
from dlmrl_kit.report.console import ProgressBars, say

PLAIN_PARTS = 4
"""Lines of progress per run where the output is no terminal."""

_ALL = "all"


def announce(design: Design, console: Console) -> None:
    """Prints what will be compared, what was verified, and the notes of a design."""
    say(console, f"{design.recipe}: {len(design.variants)} variants by {len(design.seeds)} seeds")
    for variant in design.variants:
        if variant.difference is not None:
            say(console, f"verified: {variant.name} {variant.difference}")
    for note in design.notes:
        say(console, f"note: {note}")


class RichAblationObserver(AblationObserver):
    """Shows the runs of an ablation: a bar for all, a bar for each that runs now, a line for each that ended.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._jobs: list[Job] = []
        self._bars = ProgressBars(console)
        self._parts: dict[str, int] = {}

    def on_start(self, jobs: list[Job], parallel: int, threads: int) -> None:
        """Says how many runs there are; starts the display on a terminal."""
        self._jobs = jobs
        finished = sum(job.status == "finished" for job in jobs)
        known = f", {finished} finished already" if finished else ""
        plural = "s" if threads > 1 else ""
        say(self.console, f"{len(jobs)} runs{known}; {parallel} at a time, {threads} thread{plural} each")
        if finished < len(jobs):
            self._bars.start()
            self._bars.add(_ALL, "all", total=len(jobs), done=finished, unit="runs")

    def on_status(self, job: Job) -> None:
        """Adds or removes the run's bar, and says how it ended."""
        if job.status == "running":
            self._bars.add(job.name, job.name, total=job.variant.updates, done=job.done, unit="updates")
            if not self.console.is_terminal:
                say(self.console, f"{job.name}: {'goes on' if (job.folder / 'recipe.gin').is_file() else 'starts'}")
            return
        say(self.console, f"{job.name}: {_outcome(job)}")
        self._bars.remove(job.name)
        self._bars.move(_ALL, sum(j.status in ("finished", "failed") for j in self._jobs))

    def on_progress(self, job: Job) -> None:
        """Moves the run's bar, or prints a line now and then."""
        self._bars.move(job.name, job.done)
        part = PLAIN_PARTS * job.done // job.variant.updates
        if not self.console.is_terminal and self._parts.get(job.name, 0) < part < PLAIN_PARTS:
            self._parts[job.name] = part
            say(self.console, f"{job.name}: {job.done} of {job.variant.updates} updates")

    def on_end(self) -> None:
        """Ends the display."""
        self._bars.stop()


def _outcome(job: Job) -> str:
    if job.status == "failed":
        return f"failed: {job.error}; see {job.log}"
    result = job.result()
    return f"finished, accuracy {result['before']['accuracy']:.1%} -> {result['after']['accuracy']:.1%}"
