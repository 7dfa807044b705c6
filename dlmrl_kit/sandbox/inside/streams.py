"""Standard streams of a process in a sandbox: nothing to read, and what is written is gone.

There is no ``/dev/null`` inside. A process that is started by root owns that file even in a sandbox, and may change its
mode for the whole machine.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False  # of typing, whose import takes a sandbox a tenth of its start
if TYPE_CHECKING:
    from typing import Any


class Nowhere(io.RawIOBase):
    """A stream that takes everything and keeps nothing."""

    def writable(self) -> bool:
        """Tells that it can be written to."""
        return True

    def write(self, data: Any, /) -> int:
        """Takes the bytes."""
        return memoryview(data).nbytes


def close_standard_streams() -> None:
    """Puts ends of broken pipes in place of descriptors 0 to 2, and streams that discard in place of Python's.

    Reading gives the end of the file. Writing to the descriptors, past Python's streams, is a ``BrokenPipeError``.
    """
    empty, writer = os.pipe()
    os.close(writer)
    reader, broken = os.pipe()
    os.close(reader)
    for descriptor, end in ((0, empty), (1, broken), (2, broken)):
        os.dup2(end, descriptor)
    os.close(empty)
    os.close(broken)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BytesIO())  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.BufferedWriter(Nowhere()))  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.BufferedWriter(Nowhere()))  # type: ignore[misc]
