"""4x4 Sudoku in words, from the published puzzles."""

from __future__ import annotations

import re
from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.right_cells import RightCells
from dlmrl_kit.tasks.question_splits import Question
from dlmrl_kit.tasks.rows import Row
from dlmrl_kit.tasks.text_task import TextTask

_PUZZLE, _SOLUTION = re.compile("[0-4]{16}"), re.compile("[1-4]{16}")


@register("task", paper="arXiv 2504.12216; arXiv 2603.12554")
class Sudoku4x4Puzzles(TextTask):
    """4x4 Sudoku as the papers ask it: in words, with reasoning, on the published puzzles.

    A row has ``Puzzle``, 16 digits row by row with 0 for an empty cell, and ``Solution``, 16 digits. The papers'
    files, ``4x4_sudoku_unique_puzzles.csv`` to train on and ``4x4_test_sudoku.csv`` to test on, are in the repository
    of d1 (github.com/dllm-reasoning/d1, folder ``dataset``); no copy is on the hub, so ``data`` has no default that
    could be downloaded. Without ``test_data`` the last 500 rows are the test set.

    By default the reward is that of d1 and EGSPO, the share of the empty cells that are right: ``reward/right_cells``
    is what the papers report, the accuracy is the share of puzzles of which all cells are. ``Sudoku4x4`` is the kit's
    own, smaller task without words.

    Arguments, raises as ``TextTask``.
    """

    sample = (
        {"Puzzle": "1034341221434321", "Solution": "1234341221434321"},
        {"Puzzle": "0143432114323200", "Solution": "2143432114323214"},
        {"Puzzle": "4132231400003241", "Solution": "4132231414233241"},
    )

    @with_parameters_of(TextTask)
    def __init__(self, data: str = "4x4_sudoku_unique_puzzles.csv", **others: Any) -> None:
        super().__init__(data=data, **others)

    def question(self, row: Row) -> Question:
        """Returns the puzzle and its solution."""
        given = row["Puzzle"]
        puzzle = f"{given:016}" if isinstance(given, int) else str(given)  # a table of numbers has lost leading zeros
        solution = str(row["Solution"])
        if not _PUZZLE.fullmatch(puzzle) or not _SOLUTION.fullmatch(solution):
            raise ValueError(f"no 4x4 puzzle with its solution: {puzzle!r:.40}, {solution!r:.40}")
        if any(cell not in ("0", true) for cell, true in zip(puzzle, solution, strict=True)):
            raise ValueError(f"the solution {solution} changes what is given in {puzzle}")
        return Question(f"Puzzle: {puzzle}", {"puzzle": puzzle, "solution": solution}, solution, key=puzzle)

    def published_rewards(self) -> list[RewardFunction]:
        """Returns the share of right cells."""
        return [RightCells()]

    def instruction(self) -> str:
        """Returns the rules, how a puzzle is written, and the form of the answer."""
        return (
            "Solve the 4x4 Sudoku: fill each empty cell with a digit from 1 to 4, so that every row, every column and "
            "every 2x2 box holds each digit once. A puzzle is written as 16 digits, row by row, with 0 for an empty "
            f"cell. {super().instruction()} The final answer is all 16 digits of the solved puzzle, without spaces."
        )
