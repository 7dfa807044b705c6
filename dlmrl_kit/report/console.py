"""What every display shares: text that is safe to print, lengths of time, and progress bars on a terminal."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def printable(text: str) -> str:
    """Returns ``text`` with everything that could control a terminal written as an escape; newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def say(console: Console, text: str) -> None:
    """Prints a line as it is: it is not wrapped, nothing in it is markup, and nothing in it controls the terminal."""
    console.print(Text(printable(text)), soft_wrap=True)


def duration(seconds: float) -> str:
    """Returns a length of time as people write it: ``8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Display(Protocol):
    """What shows something that changes: ``rich.live.Live``, or ``report.notebook.NotebookDisplay``."""

    def refresh(self) -> None:
        """Shows the present state."""

    def update(self, renderable: RenderableType) -> None:
        """Shows something else from now on."""

    def stop(self) -> None:
        """Ends the display; what it showed last stays."""


class ProgressBars:
    """Progress bars that stay at the bottom of a terminal, or in an output of a notebook, while they change.

    Where the output is neither, or before ``start``, the methods do nothing: a caller need not ask.

    Args:
        console: where to show them.
        time_left: also estimate the time that is left, from the progress since ``start``.
    """

    def __init__(self, console: Console, *, time_left: bool = False) -> None:
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
        ]
        if time_left:
            columns += [TextColumn("elapsed "), TimeRemainingColumn(), TextColumn("left")]
        self._console = console
        self._progress = Progress(*columns, console=console, expand=True)
        self._bars: dict[str, TaskID] = {}
        self._live: Display | None = None

    @property
    def shown(self) -> bool:
        """Whether the output is one that can show what changes."""
        return self._console.is_terminal or self._console.is_jupyter

    def start(self) -> None:
        """Begins the display, if the output can show what changes."""
        if self._console.is_jupyter:
            from dlmrl_kit.report.notebook import NotebookDisplay

            self._live = NotebookDisplay(self._progress)
        elif self._console.is_terminal:
            live = Live(self._progress, console=self._console, refresh_per_second=4)
            live.start(refresh=True)
            self._live = live

    def stop(self) -> None:
        """Ends the display; what it showed last stays on the screen. May be called more than once."""
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None

    def add(self, name: str, label: str, *, total: int, done: int, unit: str) -> None:
        """Adds a bar below the others.

        Args:
            name: what ``move`` and ``remove`` call it.
            label: what the screen calls it.
            total: the number at which it is full.
            done: the number it starts at.
            unit: what is counted.
        """
        if self._live is not None:
            self._bars[name] = self._progress.add_task(Text(label).markup, total=total, completed=done, unit=unit)

    def move(self, name: str, done: int) -> None:
        """Shows that ``done`` of a bar's total are done."""
        if self._live is not None:
            self._progress.update(self._bars[name], completed=done)

    def remove(self, name: str) -> None:
        """Takes a bar away."""
        if self._live is not None:
            self._progress.remove_task(self._bars.pop(name))

    def show_below(self, *parts: RenderableType) -> None:
        """Shows ``parts`` below the bars, in place of what was there."""
        if self._live is not None:
            self._live.update(Group(self._progress, *parts))
