"""Sums of two digits."""

from __future__ import annotations

from typing import SupportsIndex

from dlmrl_kit import register
from dlmrl_kit.tasks.base import BaseTask, Example


@register("task")
class AcmeTask(BaseTask):
    """Add two digits: 100 questions, of which every fifth one is held out."""

    def size(self, split: str) -> int:
        """Returns 80 for ``train``, 20 for ``heldout``, 0 for ``pretrain``.

        Raises:
            ValueError: unknown split.
        """
        return len(self._pairs(split))

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Returns a question, ``3+4=``, and its answer.

        Raises:
            IndexError: there is no such example.
            ValueError: unknown split.
        """
        left, right = self._pairs(split)[self._position(split, index)]
        return Example(f"{left}+{right}=", str(left + right))

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Pays 1 for the right sum, 0.2 for another number, 0 for anything else."""
        text = completion.strip()
        solved = float(text == example.answer)
        return {"reward": max(solved, 0.2 * (text.isascii() and text.isdigit())), "solved": solved}

    def _pairs(self, split: str) -> list[tuple[int, int]]:
        if split not in self.SPLITS:
            raise ValueError(f"unknown split {split!r}; available: {', '.join(self.SPLITS)}")
        numbers = {"train": [n for n in range(100) if n % 5 > 0], "heldout": list(range(0, 100, 5)), "pretrain": []}
        return [divmod(n, 10) for n in numbers[split]]
