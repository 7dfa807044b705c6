"""What runs in a worker process of ``pool``: it loads a function, then calls it on one item after another.

Both sides send messages through pipes: their length, then their bytes. The first message to the worker is the pickled
loader and memory limit, and the reply says whether loading worked. Every other is a time limit and a pickled item, and
the reply is the result or a ``Failed``, as data (``plain_data``): what comes from a worker is never unpickled.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import struct
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.sandbox.inside.limits import limit_process
from dlmrl_kit.sandbox.inside.messages import read_messages, write_message
from dlmrl_kit.sandbox.inside.plain_data import from_bytes, to_bytes
from dlmrl_kit.sandbox.inside.streams import close_standard_streams
from dlmrl_kit.scoring.guard import start_guarded

START_SECONDS = 120.0
"""Time limit of starting a worker and loading its function."""
MAX_BYTES = 64 * 2**20
"""Largest result of a worker, encoded."""
GRACE_SECONDS = 10.0
"""A worker ends itself so long after a time limit, should there be nobody left to end it."""

SECONDS = struct.Struct(">d")
"""The head of a request: its time limit."""


@dataclass(frozen=True)
class Failed:
    """Says why an item has no result.

    Args:
        kind: ``"timeout"``, ``"crash"`` (the process died) or ``"error"`` (the function raised, or its result cannot be
            sent).
        message: one line.
        details: a traceback, where there is one.
    """

    kind: str
    message: str
    details: str = ""


def serve() -> None:
    """Runs a worker and, above it, its guard; returns when the worker's standard input ends."""
    start_guarded()
    _serve(_discard_output)


def serve_in_sandbox() -> None:
    """Runs a worker in a sandbox, whose guard is outside; returns when its standard input ends."""
    limit_process(None, None)
    _serve(close_standard_streams)


def _discard_output() -> None:
    """Discards what is printed, which must not get between the replies; there is nothing to read."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _serve(discard: Callable[[], None]) -> None:
    stdin, stdout = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    discard()
    messages = read_messages(stdin)
    setup = next(messages, None)
    function = None if setup is None else _load(setup, stdout)
    if function is None:
        return
    for message in messages:
        (timeout,) = SECONDS.unpack_from(message)
        with _deadline(timeout):
            try:
                result: object = function(pickle.loads(message[SECONDS.size :]))
            except BaseException as error:  # SystemExit too
                result = _failure(error)
            _reply(stdout, result)


def _load(setup: bytes, stdout: IO[bytes]) -> Callable[[object], object] | None:
    """Loads the function and tells the parent whether that worked; None where it did not."""
    with _deadline(START_SECONDS):
        try:
            load, memory = pickle.loads(setup)
            _limit(memory)
            function: Callable[[object], object] = load()
        except BaseException as error:
            _reply(stdout, _failure(error))
            return None
        _reply(stdout, None)
        return function


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Makes the process end itself if the context takes much too long.

    Usually the parent ends it before that; but a parent that was killed cannot.
    """
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _failure(error: BaseException) -> Failed:
    if isinstance(error, UserError):
        return Failed("error", str(error))
    reason = str(error) or (_memory_reason() if isinstance(error, MemoryError) else "")
    message = " ".join(f"{type(error).__name__}: {reason}".split())[:500]
    return Failed("error", message, "".join(traceback.format_exception(error))[-4000:].rstrip())


def read_reply(message: bytes) -> object:
    """Returns the result in a worker's reply, or the ``Failed``.

    Raises:
        ValueError: it is no reply.
    """
    reply = from_bytes(message)
    if isinstance(reply, tuple) and len(reply) == 3 and all(isinstance(part, str) for part in reply):
        return Failed(*reply)
    if not isinstance(reply, list) or len(reply) != 1:
        raise ValueError("no reply of a worker")
    return reply[0]


def _encoded(result: object) -> bytes:
    """Returns a reply: a list of the result, or a tuple of what a ``Failed`` holds."""
    return to_bytes((result.kind, result.message, result.details) if isinstance(result, Failed) else [result])


def _reply(stdout: IO[bytes], result: object) -> None:
    try:
        message = _encoded(result)
        if len(message) > MAX_BYTES:
            message = _encoded(Failed("error", f"a result of {len(message)} bytes; {MAX_BYTES} are the limit"))
    except Exception as error:
        message = _encoded(_failure(error))
    with contextlib.suppress(BrokenPipeError):
        write_message(stdout, message)


def _memory_reason() -> str:
    """Says what the limit of this process' memory is, if it has one."""
    try:
        import resource
    except ImportError:
        return ""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if limit == resource.RLIM_INFINITY else f"it needs more than the worker's {limit / 2**30:g} GiB"


def _limit(memory: int | None) -> None:
    """Limits the address space and turns off core dumps, where the system can do that."""
    try:
        import resource
    except ImportError:
        return
    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, memory)):
        if limit is not None:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (limit, limit))
