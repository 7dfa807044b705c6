"""Tasks with one mistake each."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.tasks.base import Example, Task


class Sums(Task):
    """Adds two numbers."""

    def __init__(self) -> None:
        super().__init__(5, 5, 5)

    def candidate(self, number: int) -> Example | None:
        return Example(f"{number}+1=", str(number + 1))

    def score(self, completion: str, example: Example) -> dict[str, float]:
        solved = float(completion.strip() == example.answer)
        return {"reward": solved, "solved": solved}


class SharesPuzzles(Sums):
    """Gives every split the same examples."""

    def example(self, split: str, index: Any) -> Example:
        return super().example("train", index) if split in self.SPLITS else super().example(split, index)


class DependsOnCalls(Sums):
    """Makes other examples the second time."""

    asked = 0

    def example(self, split: str, index: Any) -> Example:
        self.asked += 1
        example = super().example(split, index)
        return Example(f"{example.prompt}{self.asked}", example.answer)


class ChokesOnJunk(Sums):
    """Expects a number."""

    def score(self, completion: str, example: Example) -> dict[str, float]:
        solved = float(int(completion) == int(example.answer))
        return {"reward": solved, "solved": solved}


class RewardsLength(Sums):
    """Pays by the character."""

    def score(self, completion: str, example: Example) -> dict[str, float]:
        return {**super().score(completion, example), "reward": float(len(completion))}


class InfiniteReward(Sums):
    """Pays without bound."""

    def score(self, completion: str, example: Example) -> dict[str, float]:
        reward = float("inf") if len(completion) > 10 else 0.0
        return {**super().score(completion, example), "reward": reward}


class SolvedByPrefixes(Sums):
    """Takes the beginning of an answer for the answer, and all answers begin alike."""

    def candidate(self, number: int) -> Example | None:
        return Example(f"{number}/1000=", f"0.{number:03}")

    def score(self, completion: str, example: Example) -> dict[str, float]:
        solved = float(bool(completion) and example.answer.startswith(completion))
        return {"reward": solved, "solved": solved}


class WrongAnswers(Sums):
    """Does not know the answer."""

    def candidate(self, number: int) -> Example | None:
        return Example(f"{number}+1=", "?")

    def score(self, completion: str, example: Example) -> dict[str, float]:
        return {"reward": 0.0, "solved": 0.0}


class NoIndexError(Sums):
    """Wraps around."""

    def example(self, split: str, index: Any) -> Example:
        return super().example(split, index % 5)
