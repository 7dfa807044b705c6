"""The processes of runs: a fresh Python for each, or forks of a server that has imported everything already."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

_LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 10.0
_WORK = "sys.path[:] = task.pop('path'); from dlmrl_kit.experiments.run_worker import work; work(**task)"
# A worker reads its task, and the path where this process finds modules, from standard input. That stays open: when
# it ends, the worker knows that this process is gone.
_FRESH = (sys.executable, "-c", f"import json, sys; task = json.loads(sys.stdin.readline()); {_WORK}")
_SERVER = (
    *(sys.executable, "-c"),
    "import sys; from multiprocessing.connection import Connection; connection = Connection(int(sys.argv.pop())); "
    "sys.path[:], observer_module = connection.recv(); from dlmrl_kit.experiments.fork_server import serve; "
    f"task = serve(connection, observer_module); {_WORK}",
)


class RunProcess:
    """The process of one run."""

    def poll(self) -> int | None:
        """Returns the exit code, -n if signal n ended the process, or None while it goes on."""
        raise NotImplementedError

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees what is held for a process that has ended."""

    def ends(self, seconds: float) -> bool:
        """Waits for the end; returns whether it came within some seconds."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        return True


class Launcher:
    """Starts runs, each in a Python process that imports everything itself.

    Args:
        threads: of each run.
        command: reads a task from standard input, as a line of JSON, and does it.
    """

    def __init__(self, threads: int, command: tuple[str, ...] = _FRESH) -> None:
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._command = command

    def launch(self, task: dict[str, Any], log: Path) -> RunProcess:
        """Starts a process.

        Args:
            task: arguments of ``work``, and ``path``, where modules are found.
            log: what the process prints is added to this file.
        """
        with log.open("ab") as output:
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=self.environment
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; ``poll`` will see
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
        return _FreshProcess(process)

    def close(self) -> None:
        """Ends what serves the runs; called when none goes on."""


class _FreshProcess(RunProcess):
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


class ForkLauncher(Launcher):
    """Starts runs by forks of a server, which imports once; like ``Launcher`` where there is no server.

    Args:
        threads: of each run.
        observer_module: of the class that the runs report to; the server imports it.
    """

    def __init__(self, threads: int, observer_module: str) -> None:
        super().__init__(threads)
        self._codes: dict[int, int] = {}
        self._connection, theirs = Pipe()
        with theirs:
            self._server = subprocess.Popen(
                (*_SERVER, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=self.environment,
            )
        try:
            self._connection.send(([str(entry) for entry in sys.path], observer_module))
            self._connection.recv()
        except (EOFError, ConnectionError):
            self._server.wait()  # it could not import something, or forking is not safe
        except BaseException:
            self._server.kill()
            self.close()
            raise

    def launch(self, task: dict[str, Any], log: Path) -> RunProcess:
        """Forks the server; starts a fresh process if there is no server, or no more."""
        try:
            self._connection.send(("run", task, str(log)))
            while not isinstance(reply := self._connection.recv(), int):
                self._note(*reply)
        except (EOFError, ConnectionError):
            return super().launch(task, log)
        self._codes.pop(reply, None)  # of an earlier process, whose number it got
        return _ForkedProcess(self, reply)

    def code_of(self, process: int) -> int | None:
        """Returns the exit code of a fork; None while it goes on."""
        try:
            while self._connection.poll():
                self._note(*self._connection.recv())
        except (EOFError, ConnectionError):
            return self._codes.get(process, self._server.wait())  # the forks have ended with it
        return self._codes.get(process)

    def send_signal(self, process: int, number: int) -> None:
        """Sends a signal to a fork that goes on."""
        with contextlib.suppress(ConnectionError):
            self._connection.send(("signal", process, number))

    def close(self) -> None:
        """Ends the server."""
        self._connection.close()
        try:
            self._server.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _note(self, process: int, code: int) -> None:
        self._codes[process] = code


class _ForkedProcess(RunProcess):
    def __init__(self, launcher: ForkLauncher, process: int) -> None:
        self._launcher, self._process = launcher, process

    def poll(self) -> int | None:
        return self._launcher.code_of(self._process)

    def send_signal(self, number: int) -> None:
        self._launcher.send_signal(self._process, number)


def new_launcher(threads: int, observer_module: str, *, forks: bool) -> Launcher:
    """Returns the cheapest safe way to start runs.

    Args:
        threads: of each run.
        observer_module: of the class that the runs report to.
        forks: whether there are several runs, none of which uses a GPU: only Linux forks safely then.
    """
    return ForkLauncher(threads, observer_module) if forks and sys.platform == "linux" else Launcher(threads)
