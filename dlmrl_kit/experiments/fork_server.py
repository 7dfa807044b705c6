"""The process that imports once what the runs of an experiment need, and forks for each of them.

It computes nothing, has no threads and touches no GPU, so that a fork of it goes on as a fresh process would.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from dlmrl_kit.recipe.builtin import load_builtin

MODULES = (
    *("dlmrl_kit.training", "matplotlib.pyplot", "numpy.random", "peft", "reasoning_gym", "safetensors.torch"),
    *("transformers.models.llama.modeling_llama", "transformers.optimization"),
)
"""What the shipped recipes import besides the kit's components; a run imports what else it needs."""

_LOOK_SECONDS = 0.05


def serve(connection: Connection, observer_module: str) -> dict[str, Any]:
    """Imports everything, says so, and forks for each task until the connection ends; exits where that is not safe.

    Args:
        connection: to the other side, which gets None first. It sends ``("run", task, log)`` and gets the id of the
            run's process; it sends ``("signal", id, number)``; it gets ``(id, exit code)`` when a run has ended.
        observer_module: is imported, too.

    Returns:
        A task, in the process that is to do it. The standard input of that process ends when this one is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process, too, but the other side must decide
    load_builtin()
    for module in (*MODULES, observer_module):
        importlib.import_module(module)
    if not forks_safely():
        sys.exit(1)
    connection.send(None)
    gc.collect()
    gc.freeze()  # so that the runs share the memory of what is imported
    return _Server(connection).task()


def forks_safely() -> bool:
    """Returns whether this process has no threads; forks here once, because OpenBLAS ends its own at a fork."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return len(os.listdir("/proc/self/task")) == 1


@dataclass
class _Server:
    connection: Connection
    running: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        ends, self.alive = os.pipe()
        os.dup2(ends, 0)
        os.close(ends)

    def task(self) -> dict[str, Any]:
        """Forks, signals and reports; returns in a fork."""
        while True:
            try:
                if self.connection.poll(_LOOK_SECONDS):
                    order, *rest = self.connection.recv()
                    if order == "run" and self._fork():
                        return self._begin(*rest)
                    if order == "signal":
                        self._signal(*rest)
                self._report()
            except (EOFError, ConnectionError):
                os._exit(0)  # the other side is gone: the standard input of all runs ends now

    def _fork(self) -> bool:
        """Returns whether this is the new process."""
        child = os.fork()
        if child:
            self.running.add(child)
            self.connection.send(child)
        return not child

    def _begin(self, task: dict[str, Any], log: str) -> dict[str, Any]:
        os.close(self.alive)
        self.connection.close()
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        sys.modules["numpy.random"].seed()  # of its own, which a fork shares; Python's random sees to that itself
        return task

    def _signal(self, child: int, number: int) -> None:
        if child in self.running:  # not yet waited for, so that the number is of no other process
            os.kill(child, number)

    def _report(self) -> None:
        for child in list(self.running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self.running.remove(child)
                self.connection.send((child, os.waitstatus_to_exitcode(status)))
