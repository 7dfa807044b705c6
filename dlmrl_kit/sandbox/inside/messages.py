"""Messages through a stream of bytes: their length, then their bytes."""

from __future__ import annotations

import contextlib
import struct

TYPE_CHECKING = False  # of typing, whose import takes a sandbox a tenth of its start
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Readable(Protocol):
        """An unbuffered stream to read from."""

        def read(self, size: int = -1, /) -> bytes | None:
            """Returns at most ``size`` bytes; none at the end."""

    class Writable(Protocol):
        """An unbuffered stream to write to."""

        def write(self, data: memoryview, /) -> int | None:
            """Takes some of the bytes, and returns how many."""


LENGTH = struct.Struct(">Q")
"""The head of a message: how many bytes follow."""


def write_message(stream: Writable, message: bytes) -> None:
    """Sends a message through an unbuffered stream."""
    data = memoryview(LENGTH.pack(len(message)) + message)
    while data:  # an unbuffered stream may take less than it is given
        data = data[stream.write(data) or 0 :]


def read_messages(stream: Readable, limit: int | None = None) -> Iterator[bytes]:
    """Yields the messages of an unbuffered stream until it ends or breaks, or one has more bytes than ``limit``."""
    with contextlib.suppress(OSError, ValueError):
        while (head := _exactly(stream, LENGTH.size)) is not None:
            (length,) = LENGTH.unpack(head)
            message = None if limit is not None and length > limit else _exactly(stream, length)
            if message is None:
                return
            yield message


def _exactly(stream: Readable, length: int) -> bytes | None:
    """Reads that many bytes; None where the stream ends before."""
    data = bytearray()
    while len(data) < length:
        piece = stream.read(length - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)
