"""Right answers, and empty ones in between."""

from __future__ import annotations

from dlmrl_kit import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.demonstrators.base import Demonstrator
from dlmrl_kit.tasks.base import Example


@register("demonstrator")
class AcmeDemonstrator(Demonstrator):
    """Demonstrates the right answer with a probability, and otherwise an empty completion.

    Args:
        right: the probability, in [0, 1].

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, right: float = 0.9) -> None:
        check(0 <= right <= 1, self, "right", right, "in [0, 1]")
        self.right = right

    def demonstrations(self, example: Example) -> list[tuple[str, float]]:
        """Returns both completions with their probabilities."""
        return [(example.answer, self.right), ("", 1 - self.right)]
