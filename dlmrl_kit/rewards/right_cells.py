"""Pays the share of the empty cells of a puzzle that are filled right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.tags import in_answer


def right_cells(text: str, puzzle: str, solution: str) -> float:
    """Returns the share of the empty cells (``0``) that the digits in ``<answer>`` fill as the solution does.

    All digits in the answer are read as one row, whatever stands between them; missing ones are wrong and those beyond
    the last cell do not count. 0 without the tag, and for a puzzle without empty cells.
    """
    digits = [c for c in in_answer(text) or "" if c in "0123456789"]
    empty = [cell for cell, given in enumerate(puzzle) if given == "0"]
    right = sum(cell < len(digits) and digits[cell] == solution[cell] for cell in empty)
    return right / len(empty) if empty else 0.0


@register("reward", paper="arXiv 2504.12216; arXiv 2603.12554")
class RightCells(RewardFunction):
    """The share of a Sudoku's empty cells that are right.

    The published headline is this share. The accuracy, by which the kit reports solved puzzles, is the share of
    completions of which every empty cell is right.

    Arguments, raises as ``RewardFunction``.
    """

    needs = ("puzzle", "solution")
    decides = True
    reported = "right cells"

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns the share, in [0, 1]."""
        return right_cells(text, meta["puzzle"], meta["solution"])
