"""Right answers only."""

from __future__ import annotations

from dlmrl_kit.core.registry import register
from dlmrl_kit.demonstrators.base import Demonstrator
from dlmrl_kit.tasks.base import Example


@register("demonstrator")
class Answers(Demonstrator):
    """Demonstrates the task's own answer to every example: clean supervised data, for any task."""

    def demonstrations(self, example: Example) -> list[tuple[str, float]]:
        """Returns the answer, with probability 1."""
        return [(example.answer, 1.0)]
