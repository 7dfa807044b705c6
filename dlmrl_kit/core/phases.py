"""Phases: names for the parts of an update, so that they can be measured from outside.

    with phase("sampling"):
        ...

Nothing happens unless somebody listens, as ``dlmrl profile`` does with ``listening``. A thread that is started within a
phase has none of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TypeAlias

Listener: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Makes a context from the name of a phase; the phase runs within it."""

_LISTENER: ContextVar[Listener | None] = ContextVar("dlmrl_kit_phases", default=None)


def phase(name: str) -> AbstractContextManager[object]:
    """The context of a phase; phases may lie within each other.

    Args:
        name: ``body``, ``head``, ``backward``, ``optimiser``, ``sampling``, ``rewards``, ``old and reference``,
            ``check`` or ``update``.
    """
    listener = _LISTENER.get()
    return contextlib.nullcontext() if listener is None else listener(name)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the context, ``listener`` is told of every phase of this thread."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
