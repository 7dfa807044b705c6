"""The base class of demonstrators: completions of a puzzle with the probability of each."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dlmrl_kit.tasks.base import Example


class Demonstrator(ABC):
    """Writes demonstrations, good or bad, for puzzles of a task."""

    @abstractmethod
    def demonstrations(self, example: Example) -> list[tuple[str, float]]:
        """Possible completions of a puzzle and their probabilities, which sum to 1; as many for every puzzle."""
