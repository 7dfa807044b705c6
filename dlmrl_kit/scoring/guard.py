"""The guard of a worker process: it ends the worker, and all that the worker started, when their parent has gone.

A process that is killed cannot end its workers, a worker that was stopped or that computes does not notice, and one
that is killed cannot end what it started itself. So a worker begins by forking: its first process, which loads nothing
else and calls nobody's code, waits for the end of the worker or of the parent and then ends what is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # of Linux' prctl


def start_guarded() -> None:
    """Returns in a new process, the worker, which is the leader of a process group; this process becomes its guard.

    The guard ends with the exit code or signal of the worker. It ends everything when its standard input has no writer
    any more, when its parent is another one, and on SIGTERM. On Windows it returns in the same process.
    """
    if sys.platform == "win32":
        return
    guard = _Guard()
    worker = os.fork()
    if worker:
        guard.watch(worker)
    guard.forget()
    os.setpgid(0, 0)
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != guard.pid:  # it had gone before
        os._exit(0)


class _Guard:
    """What this process has to know as a guard; made before the worker, so that no signal is lost."""

    def __init__(self) -> None:
        self.pid, self._parent = os.getpid(), os.getppid()
        self._worker = 0
        self._status: int | None = None
        self._asked = False
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._ask)
        _prctl(_SET_CHILD_SUBREAPER, 1)  # what the worker leaves behind becomes a child of the guard
        _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGCONT)  # a guard that was stopped goes on

    def _ask(self, *_: object) -> None:
        self._asked = True

    def forget(self) -> None:
        """Takes back, in the worker, what belongs to the guard."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(self._woken)
        os.close(self._wake)

    def watch(self, worker: int) -> None:
        """Waits for the end of the worker or of the parent, ends what is left, and ends this process."""
        self._worker = worker
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)  # the worker's end of the pipe must be the last one
        poller = select.poll()
        poller.register(0, 0)  # reads nothing; tells when the last writer has gone
        poller.register(self._woken, select.POLLIN)
        while True:
            hung_up = any(descriptor == 0 for descriptor, _ in poller.poll(1000))
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)
            self._reap()
            if self._status is not None or hung_up or self._asked or os.getppid() != self._parent:
                break
        ended_itself = self._status
        self._end_all()
        _end_as(ended_itself)

    def _reap(self) -> bool:
        """Collects the children that have ended; returns whether there are others."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._worker:
                    self._status = status
        return False

    def _end_all(self) -> None:
        """Ends the worker and all its descendants, those in other sessions too where the system tells of them."""
        for _ in range(200):
            with contextlib.suppress(OSError):
                os.killpg(self._worker, signal.SIGKILL)
            for pid in _descendants(self.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if not self._reap():
                return
            time.sleep(0.01)


def _descendants(of: int) -> list[int]:
    """Lists the processes below one, by what /proc says; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(stat.read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [of]
    while todo:
        below = children.pop(todo.pop(), [])
        found += below
        todo += below
    return found


def _end_as(status: int | None) -> None:
    """Ends this process as another one ended."""
    if status is not None and os.WIFSIGNALED(status):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL cannot be set, and needs not
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else 0)


def _prctl(option: int, value: int) -> None:
    """Calls Linux' ``prctl``; does nothing where there is none."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
