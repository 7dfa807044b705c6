"""Limits on what this process may use, set by itself before it runs anything foreign; it cannot raise them again."""

from __future__ import annotations

import contextlib
import resource

FILE_BYTES = 16 * 2**20
"""Largest file that can be written."""
OPEN_FILES = 64
"""Most files open at a time."""


def limit_process(memory: int | None, seconds: int | None) -> None:
    """Limits address space, processor time, sizes and number of files; turns core dumps and message queues off.

    Args:
        memory: bytes of address space; None: no limit.
        seconds: of processor time; None: no limit.
    """
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
    }
    for kind, limit in limits.items():
        if limit is not None:
            with contextlib.suppress(OSError, ValueError):  # a lower one holds already
                resource.setrlimit(kind, (limit, limit))
