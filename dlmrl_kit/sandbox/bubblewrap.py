"""Bubblewrap around a process: the command, what it lets be seen, and the refusal where it is not to be had."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.sandbox.packages import PACKAGES
from dlmrl_kit.sandbox.syscalls import refusing_filter

INSTALL = "apt-get install bubblewrap"
"""The command that installs it, on Debian and Ubuntu."""
TEMPORARY_BYTES = 64 * 2**20
"""What the private /tmp holds, which is memory."""
OWN_CODE = "/kit"
"""Where the kit's own code for the inside is found in a sandbox."""


class SandboxError(UserError):
    """There is no sandbox to be had, or it cannot be used."""


@functools.cache
def require_bubblewrap() -> str:
    """Returns the path of ``bwrap``, once it has been seen to work.

    Raises:
        SandboxError: it is not installed, is too old, or may not do what it does; the message says what to do.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError(f"the sandbox needs bubblewrap (bwrap), which is not installed; install it: {INSTALL}")
    command = [*_walls(found), *_python_seen(), "--", *python_command("pass")]
    tried = subprocess.run(command, env={}, capture_output=True, text=True, check=False, timeout=60)
    if tried.returncode:
        said = " ".join(tried.stderr.split())[:200] or f"exit code {tried.returncode}"
        raise SandboxError(
            f"bubblewrap ({found}) cannot make a sandbox here: {said}; it needs version 0.8 or later and user "
            "namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; "
            "in a container: a seccomp profile that allows unshare)"
        )
    return found


class Sandboxed:
    """A process in a sandbox, killed with all that it holds by ``kill``.

    It sees Python and the libraries of the system, read-only, ``seen``, and an empty /tmp; no network, no environment,
    no other process. It dies when the thread that started it ends.

    Args:
        python: the arguments of Python behind ``-c``: the code, and what it finds in ``sys.argv``.
        channel: descriptor of a socket, which is its standard input, output and error, until it closes them itself. No
            file that was opened outside may be within its reach: who owns it may change its mode even so.
        seen: files and folders that it may read, by where they are found inside.
        processes: whether it may start processes.
        unsafe: run it as an ordinary process instead, with all rights of the user.
    """

    def __init__(
        self,
        python: Sequence[str],
        channel: int,
        seen: Mapping[str, Path] | None = None,
        processes: bool = False,
        unsafe: bool = False,
    ) -> None:
        seen = seen or {}
        if unsafe:
            path = [str(Path(__file__).parents[2]), *{str(found.parent) for found in seen.values()}]
            self._start(python_command(_with_path(path, python[0]), *python[1:]), channel, ())
            return
        reader, writer = os.pipe()
        try:
            os.write(writer, refusing_filter(processes))
            os.close(writer)
            code = _with_path([OWN_CODE, PACKAGES], python[0])
            self._start([*sandbox_command(reader, seen), *python_command(code, *python[1:])], channel, (reader,))
        finally:
            os.close(reader)

    def _start(self, command: list[str], channel: int, kept: tuple[int, ...]) -> None:
        self._process = subprocess.Popen(
            command,
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
            cwd="/",
            stdin=channel,
            stdout=channel,  # what Python says when it cannot start is read there
            stderr=channel,
            pass_fds=kept,
        )

    def alive(self) -> bool:
        """Tells whether it is running."""
        return self._process.poll() is None

    def threads(self) -> int:
        """Counts the threads in the sandbox, by what /proc says; 0 where it does not."""
        count, todo = 0, [str(self._process.pid)]
        with contextlib.suppress(OSError):
            while todo:
                tasks = Path("/proc", todo.pop(), "task")
                threads = os.listdir(tasks)
                count += len(threads)
                todo += (tasks / threads[0] / "children").read_text().split()
        return count

    def kill(self) -> int:
        """Ends it, and all processes in the sandbox; returns the exit code."""
        self._process.kill()  # the kernel ends the first process of its namespace with it, and with that the others
        return self._process.wait()


def sandbox_command(filter_descriptor: int, seen: Mapping[str, Path]) -> list[str]:
    """Returns the command line of a sandbox up to what is run in it.

    Args:
        filter_descriptor: where ``bwrap`` reads ``refusing_filter``.
        seen: files and folders that may be read, by where they are found inside.

    Raises:
        SandboxError: there is none.
    """
    command = [*_walls(require_bubblewrap()), *_python_seen(), "--seccomp", str(filter_descriptor)]
    inside = Path(__file__).parent / "inside"
    places = {f"{OWN_CODE}/dlmrl_kit/sandbox/inside": inside, **seen}
    binds = [part for place, found in places.items() for part in ("--ro-bind", str(found), place)]
    return [*command, *binds, "--remount-ro", "/", "--"]


def python_command(code: str, *arguments: str) -> list[str]:
    """Returns the command line of Python inside: isolated, without ``site``."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", code, *arguments]


def _walls(bwrap: str) -> list[str]:
    """Returns the part of the command line that takes everything away."""
    spaces = ("user", "pid", "ipc", "net", "uts", "cgroup-try")
    return [
        bwrap,
        *(f"--unshare-{space}" for space in spaces),
        *("--die-with-parent", "--new-session", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
        *("--hostname", "sandbox", "--setenv", "HOME", "/tmp", "--chdir", "/tmp"),
        *("--size", str(TEMPORARY_BYTES), "--tmpfs", "/tmp"),
    ]


@functools.cache
def _python_seen() -> tuple[str, ...]:
    """Returns the part that shows Python, its standard library and the libraries of the system, read-only.

    Folders of installed packages lie in these; they are hidden, for a package may hold the tests and their answers.
    """
    base = Path(sys.base_prefix)
    libraries = [Path(name) for name in ("/lib", "/lib64", "/usr/lib", "/usr/lib64")]
    libraries += [base / "lib", base / "lib64", Path(os.__file__).parent]
    found = {path.resolve() for path in libraries if path.is_dir()}
    shown = sorted(path for path in found if found.isdisjoint(path.parents))
    arguments: list[str] = []
    for path in shown:
        arguments += ["--ro-bind", str(path), str(path)]
    for link in (path for path in libraries if path.is_symlink() and path.parent == Path("/")):
        arguments += ["--symlink", os.readlink(link), str(link)]
    program = os.path.realpath(sys.executable)
    arguments += ["--ro-bind", program, program]
    hidden = {Path(place).resolve() for place in (*site.getsitepackages(), sysconfig.get_path("purelib"))}
    for path in shown:
        hidden |= {inner for name in ("site", "dist") for inner in path.glob(f"python*/{name}-packages")}
        hidden |= {inner for name in ("site", "dist") for inner in path.glob(f"{name}-packages")}
    for path in sorted(hidden):
        if path.is_dir() and any(path.is_relative_to(parent) for parent in shown):
            arguments += ["--size", "4096", "--tmpfs", str(path), "--remount-ro", str(path)]
    return tuple(arguments)


def _with_path(path: Sequence[str], code: str) -> str:
    return f"import sys; sys.path += {list(path)!r}; {code}"
