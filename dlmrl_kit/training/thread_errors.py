"""Errors of the threads in which libraries write files: a full disk ends them, and Python would print a traceback."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Collection
from types import TracebackType


class ThreadErrors:
    """Within the context, keeps the ``OSError`` that ends a thread, in place of printing it; others are printed.

    Args:
        ignored: packages whose threads may end as they like: those of trackers, which a run can do without.
    """

    def __init__(self, ignored: Collection[str] = ()) -> None:
        self._ignored = frozenset(ignored)
        self._error: OSError | None = None
        self._before = threading.excepthook

    def __enter__(self) -> ThreadErrors:
        self._before, threading.excepthook = threading.excepthook, self._keep
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        threading.excepthook = self._before

    def check(self) -> None:
        """Raises the ``OSError`` that was kept, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _keep(self, args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            self._before(args)
            return
        frames = traceback.walk_tb(args.exc_traceback)
        packages = {str(frame.f_globals.get("__name__", "")).split(".")[0] for frame, _ in frames}
        if not packages & self._ignored:
            self._error = args.exc_value
