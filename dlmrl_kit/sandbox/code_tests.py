"""Unit tests on a model's program: the program in one sandbox, the tests in another, verdicts from the latter alone."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dlmrl_kit.sandbox.bubblewrap import Sandboxed, SandboxError
from dlmrl_kit.sandbox.inside.judge import GRACE_SECONDS
from dlmrl_kit.sandbox.inside.messages import read_messages, write_message
from dlmrl_kit.sandbox.inside.plain_data import from_bytes, to_bytes
from dlmrl_kit.sandbox.inside.program import MODULE, READY
from dlmrl_kit.sandbox.inside.suites import names_of
from dlmrl_kit.sandbox.packages import foreign_imports, packages_seen

START_SECONDS = 60.0
"""Time limit of starting Python in a sandbox."""
MAX_THREADS = 256
"""Most threads of a program. No limit of the kernel counts them where the kit runs as root, so they are watched."""
WATCH_SECONDS = 0.1
"""How often."""
JUDGE_BYTES = 2 * 2**30
"""Address space of the process that runs the tests."""
_RUN = "from dlmrl_kit.sandbox.inside.{module} import main; main()"


@dataclass(frozen=True)
class Suite:
    """Unit tests, in one of the published forms.

    Args:
        form: ``"statements"``, ``"check"`` or ``"module"`` (``dlmrl_kit.sandbox.inside.suites``).
        tests: the statements, or the text of the function ``check`` or of the module.
        names: what the tests take from the program: what the reference solution defines; for ``"check"`` the function.
        classes: those of them that the reference solution defines as classes.
        setup: code that runs before the tests, in their process.

    Raises:
        ValueError: the tests are no Python, there are none, or they need what is not supported (fixtures, ``async``).
    """

    form: Literal["statements", "check", "module"]
    tests: str | tuple[str, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    setup: str = ""

    def __post_init__(self) -> None:
        self.test_names()

    def test_names(self) -> list[str]:
        """Returns the names of the tests."""
        return names_of(dataclasses.asdict(self))

    def data(self) -> dict[str, Any]:
        """Returns it as data that can be sent, with the packages that the tests import."""
        texts = (self.tests,) if isinstance(self.tests, str) else self.tests
        imports = foreign_imports(self.setup, *texts) - {MODULE}
        return {**dataclasses.asdict(self), "imports": sorted(imports)}


@dataclass(frozen=True)
class Outcome:
    """What unit tests said of a program.

    Args:
        tests: for each test its name, whether it passed, and why not.
        ended: ``"timeout"`` or ``"crash"`` where the program was ended or ended before the tests did, else "".
    """

    tests: tuple[tuple[str, bool, str], ...]
    ended: str = ""

    @property
    def share(self) -> float:
        """The share of the tests that passed."""
        return sum(passed for _, passed, _ in self.tests) / len(self.tests)


Item: TypeAlias = tuple[str, dict[str, Any]]
"""A program, and the tests as ``Suite.data`` gives them."""


class CodeTests:
    """Runs unit tests on programs, each in a sandbox of its own, which is started before it is needed.

    One object runs one program at a time. It is meant for a worker process (``scoring.pool``): the sandboxes die with
    the thread that started them.

    Args:
        timeout: seconds for a program and all of its tests.
        memory: bytes of address space of a program.
        packages: installed packages that programs may import; what these require comes with them.
        unsafe: without sandboxes.

    Raises:
        UserError: there is no sandbox to be had, or a package is not installed.
    """

    def __init__(self, timeout: float, memory: int, packages: tuple[str, ...] = (), unsafe: bool = False) -> None:
        self._timeout, self._memory, self._unsafe = timeout, memory, unsafe
        self._seen = packages_seen(packages)
        for module in ("program", "judge"):  # compiles them, once, where it can be written down
            importlib.import_module(f"dlmrl_kit.sandbox.inside.{module}")
        self._judge: _Judge | None = None
        self._next = self._start()

    def __call__(self, item: Item) -> list[Any]:
        """Returns an ``Outcome`` as data: its tests, and how the program ended."""
        program, self._next = self._next, self._start()
        text, suite = item
        try:
            program.wait()
            judge = self._judge_of(suite["imports"])
            verdicts, ended = judge.run(program, text, suite, self._timeout)
        finally:
            program.kill()
        if verdicts is None:
            judge.sandbox.kill()
            verdicts = [[name, False, "the tests did not end"] for name in names_of(suite)]
        return [verdicts, ended]

    def close(self) -> None:
        """Ends the sandboxes."""
        self._next.kill()
        if self._judge is not None:
            self._judge.sandbox.kill()

    def _judge_of(self, imports: list[str]) -> _Judge:
        """Returns the judge, which has imported what the tests import."""
        judge = self._judge
        if judge is None or not judge.sandbox.alive() or not judge.imported.issuperset(imports):
            known = set() if judge is None else judge.imported
            if judge is not None:
                judge.sandbox.kill()
            self._judge = judge = _Judge(known.union(imports), self._unsafe)
        return judge

    def _start(self) -> ProgramSandbox:
        return ProgramSandbox(self._memory, math.ceil(self._timeout) + 1, self._seen, self._unsafe)


class ProgramSandbox:
    """The sandbox of a program, and the tests' end of the channel to it.

    Args:
        memory: bytes of address space.
        seconds: of processor time.
        seen, unsafe: of ``Sandboxed``.
    """

    def __init__(self, memory: int, seconds: int, seen: Mapping[str, Path] | None = None, unsafe: bool = False) -> None:
        self.channel, inside = socket.socketpair()
        with inside:
            command = [_RUN.format(module="program"), str(memory), str(seconds)]
            self.sandbox = Sandboxed(command, inside.fileno(), seen, unsafe=unsafe)

    def wait(self) -> None:
        """Waits until Python has started, which is not counted as the program's time.

        Raises:
            SandboxError: it does not start.
        """
        _await(self.channel, self.sandbox)

    def kill(self) -> None:
        """Ends it."""
        self.sandbox.kill()
        self.channel.close()


class _Judge:
    """The sandbox of the tests."""

    def __init__(self, imports: set[str], unsafe: bool) -> None:
        self.imported = imports
        self._control, inside = socket.socketpair()
        with inside:
            command = [_RUN.format(module="judge"), str(JUDGE_BYTES), *sorted(imports)]
            seen = packages_seen(imports)
            self.sandbox = Sandboxed(command, inside.fileno(), seen, processes=True, unsafe=unsafe)
        _await(self._control, self.sandbox)

    def run(
        self, program: ProgramSandbox, text: str, suite: dict[str, Any], timeout: float
    ) -> tuple[list[Any] | None, str]:
        """Returns the verdicts on a program and how it ended; None where the tests did not end."""
        deadline = time.monotonic() + timeout
        results, inside = socket.socketpair()
        with results, contextlib.suppress(OSError, ValueError):
            with inside:
                socket.send_fds(self._control, [b"+"], [program.channel.fileno(), inside.fileno()])
            program.channel.close()  # the judge's is the only one: it hears of the end
            stream = results.makefile("rwb", buffering=0)
            write_message(stream, to_bytes([text, suite, timeout]))
            ended = _watched(program.sandbox, results, deadline)
            if ended:
                program.sandbox.kill()
                _readable(results, GRACE_SECONDS)
            results.settimeout(GRACE_SECONDS)
            reply = next(read_messages(stream), None)
            if reply is not None:
                verdicts, gone = from_bytes(reply)
                return verdicts, ended or ("crash" if gone else "")
        return None, "crash"


def _await(channel: socket.socket, sandbox: Sandboxed) -> None:
    """Waits until Python has started in a sandbox.

    Raises:
        SandboxError: it does not start.
    """
    said = b""
    with contextlib.suppress(OSError):
        channel.settimeout(START_SECONDS)
        while said != READY and (piece := channel.recv(4096)):
            said += piece
        channel.settimeout(None)
    if said != READY:
        code = sandbox.kill()
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
        raise SandboxError(f"Python does not start in the sandbox: {lines[-1]}")


def _watched(sandbox: Sandboxed, results: socket.socket, deadline: float) -> str:
    """Waits for the verdicts; returns why a program has to be ended before they come, or ""."""
    while not _readable(results, min(WATCH_SECONDS, deadline - time.monotonic())):
        if time.monotonic() >= deadline:
            return "timeout"
        if sandbox.threads() > MAX_THREADS:
            return "crash"
    return ""


def _readable(stream: socket.socket, seconds: float) -> bool:
    return bool(select.select([stream], [], [], max(0.0, seconds))[0])
