"""A thread beside the main one for what need not be waited for, one job after another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Background:
    """Runs jobs in one thread, in the order in which they were given.

    A daemon: a job that hangs does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._given: list[Future[Any]] = []
        self._thread = threading.Thread(target=self._run, name="dlmrl-background", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Queues a job; the future holds what it returns or raises."""
        future: Future[Any] = Future()
        self._given.append(future)
        self._jobs.put((future, job))
        return future

    def drop(self) -> None:
        """Cancels the jobs that did not begin."""
        for future in self._given:
            future.cancel()

    def close(self, timeout: float) -> bool:
        """Ends the thread behind the jobs in its queue; waits for at most ``timeout`` seconds. Whether it has ended."""
        self._jobs.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (given := self._jobs.get()) is not None:
            future, job = given
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # SystemExit too: raised again where the result is asked for
                future.set_exception(error)
