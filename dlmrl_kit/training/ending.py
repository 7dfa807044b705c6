"""How a run ends before its time: SIGTERM ends it after the update at hand, a limit ends it where a process hangs.

Slurm sends SIGTERM before it takes a machine away, and ``torchrun`` hands it to all of its processes. ``torchrun`` also
sends it to the others where one process has died; then there is no update to end, as the others would wait for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from dlmrl_kit.core.processes import Processes

if TYPE_CHECKING:
    from typing_extensions import Self

ASKED_TOGETHER = 10.0
"""Seconds in which all processes are asked to end if the whole run is, and not only what another one has left."""
LOOKS_EVERY = 0.2
"""Seconds between two looks of the watchdog."""
HURRY = 30.0
"""Seconds that the watchdog takes at most to end a process."""
HUNG = 2
"""Exit code of a process that the watchdog ends."""


class Ending:
    """Listens for SIGTERM and, in a run of several processes, watches that it goes on; use it as a context manager.

    Args:
        processes: of the run.
        minutes: the longest time between two calls of ``beat``.
        folder: of the run, which gets the stacks of a process that hangs.

    Attributes:
        asked: whether SIGTERM has come.
    """

    def __init__(self, processes: Processes, minutes: float, folder: Path) -> None:
        self.asked = False
        self._processes, self._minutes, self._folder = processes, minutes, folder
        self._asked_at = 0.0
        self._done = "the start"
        self._last = time.monotonic()
        self._over = threading.Event()
        self._before: object = None

    def __enter__(self) -> Self:
        """Begins to listen; SIGTERM can be caught in the main thread alone."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        self.beat(self._done)
        if self._processes.world > 1:
            threading.Thread(target=self._watch, name="dlmrl-watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves SIGTERM as it was."""
        self._over.set()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

    def beat(self, done: str) -> None:
        """Notes that something was finished: ``update 12``."""
        self._done, self._last = done, time.monotonic()

    def all_asked(self) -> bool:
        """Tells whether SIGTERM has come to any process; each must call it."""
        return any(self._processes.gather(self.asked))

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._asked_at = True, time.monotonic()

    def _watch(self) -> None:
        """Ends this process where it hangs, and where it was asked to end because another one has died."""
        told = False
        while not self._over.wait(LOOKS_EVERY):
            now = time.monotonic()
            if self.asked and not told:
                self._processes.count("asked")
                told = True
            late = told and now - self._asked_at > ASKED_TOGETHER
            if late and self._processes.counted("asked") < self._processes.world:
                os._exit(128 + signal.SIGTERM)
            if now - self._last > 60 * self._minutes:
                self._end()

    def _end(self) -> None:
        """Writes one line, from the process that hangs if that can be told, and the stacks; ends the process."""
        threading.Timer(HURRY, os._exit, [HUNG]).start()  # the processes' store may not answer either
        path = self._folder / f"stacks-of-rank-{self._processes.rank}.txt"
        with contextlib.suppress(OSError), path.open("w") as file:
            faulthandler.dump_traceback(file)
        waits = self._processes.waits
        if self._processes.speaks(waits):
            what = "waits for the others" if waits else "is busy"
            sys.stderr.write(
                f"error: nothing was finished for {self._minutes:g} minutes (Trainer.timeout_minutes) after "
                f"{self._done}: rank {self._processes.rank} {what}, {path} says where; go on with: "
                f"dlmrl train --resume {self._folder}\n"
            )
            sys.stderr.flush()
        os._exit(HUNG)
