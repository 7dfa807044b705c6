"""A task whose prompts and answers are numbers."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.tasks.base import Example, Task


class Numbers(Task):
    """Example i is the digit i, i + 1 times; a completion that repeats the digit is right. Counts its scorings."""

    def __init__(self, size: int = 10) -> None:
        super().__init__(0, size, 0)
        self.calls = 0

    def candidate(self, number: int) -> Example | None:
        raise NotImplementedError

    def example(self, split: str, index: Any) -> Example:
        return Example(str(index) * (index + 1), str(index), {"split": split})

    def score(self, completion: str, example: Example) -> dict[str, float]:
        self.calls += 1
        solved = float(completion == example.answer)
        return {"reward": 0.25 + 0.5 * solved, "solved": solved}
