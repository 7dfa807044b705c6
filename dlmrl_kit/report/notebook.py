"""What changes in a notebook: one output that is replaced, which needs no widgets."""

from __future__ import annotations

import time

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.jupyter import JupyterMixin

EVERY = 0.25
"""Seconds between two states that are shown."""


class NotebookDisplay:
    """Does in a notebook what ``rich.live.Live`` does on a terminal.

    Args:
        renderable: what is shown first.
    """

    def __init__(self, renderable: RenderableType) -> None:
        from IPython.display import display

        self._shown = renderable
        self._handle = display(_Output(renderable), display_id=True)
        self._last = time.monotonic()

    def refresh(self) -> None:
        """Shows the present state."""
        self._last = time.monotonic()
        self._handle.update(_Output(self._shown))

    def update(self, renderable: RenderableType) -> None:
        """Shows something else from now on, a few times per second at most."""
        self._shown = renderable
        if time.monotonic() - self._last >= EVERY:
            self.refresh()

    def stop(self) -> None:
        """Ends the display; what it showed last stays."""


class _Output(JupyterMixin):
    """Something that rich can print, as the output of a notebook's cell."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._renderable
