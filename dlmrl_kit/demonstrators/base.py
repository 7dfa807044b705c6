"""The base class of demonstrators: completions of a puzzle with the probability of each."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.tasks.base import Example


class Demonstrator(ABC):
    """Writes demonstrations, good or bad, for puzzles of a task."""

    @abstractmethod
    def demonstrations(self, example: Example) -> list[tuple[str, float]]:
        """Possible completions of a puzzle and their probabilities, which sum to 1; as many for every puzzle."""


def field_of(example: Example, name: str) -> str:
    """A text among what the task tells about an example (``Example.meta``).

    Raises:
        RecipeError: there is none of this name.
    """
    text = example.meta.get(name)
    if not isinstance(text, str):
        known = ", ".join(repr(key) for key in example.meta) or "nothing"
        raise RecipeError(f"an example has no text {name!r} (prompt {example.prompt!r}); it has {known}")
    return text
