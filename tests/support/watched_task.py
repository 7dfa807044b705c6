"""A task that writes down when it scores, and runs on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.sudoku import Sudoku4x4

SECONDS = 20.0
"""How long the tests wait for what must happen, before they fail."""


class Watched(Sudoku4x4):
    """Writes down where and when it scores, and refuses to be called from two threads at once.

    ``during``: called in every ``score_many``, between its begin and its end.
    """

    def __init__(self, during: Callable[[int], None] = lambda number: None) -> None:
        super().__init__(4, 8, num_pretrain=0, num_train=7, num_heldout=5)
        self.events: list[str] = []
        self.threads: set[str] = set()
        self.during = during
        self.busy = threading.Lock()
        self.calls = 0

    def example(self, split: str, index: Any) -> Example:
        with self.alone():
            return super().example(split, index)

    def score_many(self, completions: Any, examples: Any) -> list[dict[str, float]]:
        with self.alone():
            self.threads.add(threading.current_thread().name)
            self.calls += 1
            number = self.calls
            self.events.append(f"begin {number}")
            self.during(number)
            found = super().score_many(completions, examples)
            self.events.append(f"end {number}")
            return found

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        assert self.busy.acquire(blocking=False), "two threads in a task at once"
        try:
            yield
        finally:
            self.busy.release()


def in_turn(patch: pytest.MonkeyPatch) -> None:
    """Everything is scored when it is asked for."""
    patch.setattr(Scorer, "ahead", lambda self: contextlib.nullcontext())
