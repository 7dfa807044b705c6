"""Names the phases of an update, so that a profiler can measure them from outside.

    with phase("sampling"):
        ...

A phase does nothing unless a listener is set with ``listening``, as ``dlmrl profile`` does. The listener hears only the
phases of its own thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TypeAlias

Listener: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Returns, for the name of a phase, the context that the phase is to run in."""

_LISTENER: ContextVar[Listener | None] = ContextVar("dlmrl_kit_phases", default=None)


def phase(name: str) -> AbstractContextManager[object]:
    """Returns the context of a phase. Phases may be nested.

    Args:
        name: ``body``, ``head``, ``backward``, ``optimiser``, ``sampling``, ``rewards``, ``old and reference``,
            ``check`` or ``update``.
    """
    listener = _LISTENER.get()
    return contextlib.nullcontext() if listener is None else listener(name)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the context, every phase of this thread runs in a context that ``listener`` makes."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
