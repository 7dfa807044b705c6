"""Demonstrations of mixed quality, as base models are trained on: a careful and a hasty Sudoku solver."""

from __future__ import annotations

import re

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.demonstrators.base import Demonstrator
from dlmrl_kit.tasks.base import Example, prompt_text

_DIGITS = "1234"
_PUZZLE = re.compile("[1-4_]{16}:")


@register("demonstrator")
class MixedSudokuSolvers(Demonstrator):
    """Demonstrates the right solution with some probability, else that of a hasty solver, for ``Sudoku4x4``.

    The hasty solver fills each row's missing digits in ascending order: every row is right, but it looks at no column
    or box. A denoiser trained on the mixture knows both ways to answer and follows the more frequent one;
    reinforcement learning has to teach it to prefer the right one.

    Args:
        correct_share: probability of the right solution.

    Raises:
        ValueError: a share outside [0, 1].
    """

    def __init__(self, correct_share: float = 0.4) -> None:
        check(0 <= correct_share <= 1, self, "correct_share", correct_share, "in [0, 1]")
        self.correct_share = correct_share

    def demonstrations(self, example: Example) -> list[tuple[str, float]]:
        """Returns the right solution and the hasty one, which are the same text where haste happens to be right.

        Raises:
            RecipeError: the example is not one of ``Sudoku4x4``.
        """
        puzzle = prompt_text(example.prompt)
        if not _PUZZLE.fullmatch(puzzle):
            raise RecipeError(f"MixedSudokuSolvers solves puzzles of Sudoku4x4, not {puzzle!r}")
        return [(example.answer, self.correct_share), (hasty(puzzle), 1.0 - self.correct_share)]


def hasty(prompt: str) -> str:
    """Returns a 4x4 puzzle (16 cells, ``_`` empty), each row filled with its missing digits in ascending order."""
    rows = [prompt[start : start + 4] for start in range(0, 16, 4)]
    return "".join(_fill(row) for row in rows)


def _fill(row: str) -> str:
    missing = iter(digit for digit in _DIGITS if digit not in row)
    return "".join(next(missing) if cell == "_" else cell for cell in row)
