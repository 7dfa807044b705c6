"""A worker process of ``pool`` in a sandbox: its guard is outside; what loads and calls the function is inside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dlmrl_kit.sandbox.bubblewrap import python_command, require_bubblewrap, sandbox_command
from dlmrl_kit.sandbox.syscalls import refusing_filter
from dlmrl_kit.scoring.guard import start_guarded

_SERVE = "import sys; sys.path[:] = {path!r}; from dlmrl_kit.scoring.process import serve_in_sandbox as serve; serve()"
_ENVIRONMENT = ("PYTHONHASHSEED", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LANG")


def start(path: Sequence[str], files: Sequence[str]) -> None:
    """Starts a guard, and replaces the guarded process by a worker in a sandbox.

    Args:
        path: where it looks for modules. Of these folders it sees those of installed packages.
        files: other files and folders that it sees.

    Raises:
        SandboxError: there is no sandbox to be had.
    """
    require_bubblewrap()
    installed = [entry for entry in path if Path(entry).name in ("site-packages", "dist-packages")]
    places = [*installed, *files, str(Path(__file__).parents[1])]
    seen = {place: Path(place) for place in places if Path(place).exists()}
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    os.write(writer, refusing_filter())
    os.close(writer)
    command = sandbox_command(reader, seen)
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    start_guarded()
    os.dup2(reader, 2)  # it was opened outside: within reach of who may change its mode
    os.execve(command[0], [*command, *python_command(_SERVE.format(path=list(path)))], environment)
