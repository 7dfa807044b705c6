"""4x4 Sudoku: puzzles of reasoning-gym's ``mini_sudoku``, scored exactly by the rules."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from random import Random

from dlmrl_kit.core.registry import register
from dlmrl_kit.tasks.base import Example, Task, prompt_text, weighted_mean
from dlmrl_kit.tasks.checks import check_int, check_reward_weights
from dlmrl_kit.tasks.gym_dataset import GymDataset, start_of_stream

_GRID = re.compile("[1-4]{16}")  # not \d, which also matches the digits of other scripts
_ROWS = [[4 * row + column for column in range(4)] for row in range(4)]
_COLUMNS = [[4 * row + column for row in range(4)] for column in range(4)]
_BOXES = [[corner, corner + 1, corner + 4, corner + 5] for corner in (0, 2, 8, 10)]
_GROUPS = (*_ROWS, *_COLUMNS, *_BOXES)


@register("task")
class Sudoku4x4(Task):
    """4x4 Sudoku with a unique solution: 16 cells in, 16 digits out.

    The prompt is the grid row by row, digits 1-4 and ``_`` for an empty cell, then ``:``; the answer is the filled
    grid, 16 digits. Example: ``"1_3__4_22_4__3_1:"``. ``meta["num_empty"]`` is the number of empty cells.

    Reward components, for which white space in a completion is ignored:

    * ``format``: 1 if the completion has exactly 16 characters, all of them 1-4, else 0;
    * ``cells``: the share of the empty cells that equal the solution; 0 where the format is wrong;
    * ``solved``: 1 if the givens are kept and every row, column and box holds each digit once, else 0;
    * ``reward``: their weighted mean.

    Args:
        min_empty, max_empty: number of empty cells, 1 to 12 (with more no puzzle has a unique solution).
        seed: decides which puzzles there are, and in which order.
        num_pretrain, num_train, num_heldout: examples of each split. About 0.1 ms per puzzle drawn, and every 5 draws
            give 2, 2 and 1 of the three splits.
        solved_weight, cells_weight, format_weight: weights of the reward, at least one positive.

    Raises:
        ValueError: a parameter out of its range.
    """

    generator_parameters = ("min_empty", "max_empty")
    max_misses = 1000

    def __init__(
        self,
        min_empty: int = 6,
        max_empty: int = 10,
        seed: int = 0,
        num_pretrain: int = 20000,
        num_train: int = 4000,
        num_heldout: int = 512,
        solved_weight: float = 0.5,
        cells_weight: float = 0.5,
        format_weight: float = 0.0,
    ) -> None:
        super().__init__(num_pretrain, num_train, num_heldout)
        check_int(self, "max_empty", max_empty, 1, 12)
        check_int(self, "min_empty", min_empty, 1, max_empty)
        check_int(self, "seed", seed, 0)
        check_reward_weights(self, solved_weight=solved_weight, cells_weight=cells_weight, format_weight=format_weight)
        self.min_empty, self.max_empty, self.seed = min_empty, max_empty, seed
        self.weights = {"format": format_weight, "cells": cells_weight, "solved": solved_weight}
        self._dataset: GymDataset | None = None

    def candidate(self, number: int) -> Example | None:
        """Returns puzzle ``number`` of the stream; None where reasoning-gym could not empty ``min_empty`` cells."""
        if self._dataset is None:
            self._dataset = _puzzles(self.seed, self.min_empty, self.max_empty)
        grids = self._dataset[number]["metadata"]
        puzzle = _text(grids["puzzle"])
        num_empty = puzzle.count("_")
        if not self.min_empty <= num_empty <= self.max_empty:
            return None
        return Example(f"{puzzle}:", _text(grids["solution"]), {"num_empty": num_empty})

    def metrics(self) -> dict[str, str]:
        """Returns the accuracy, which counts puzzles, and the share of right cells, by which papers report Sudoku."""
        return {**super().metrics(), "cells": "right cells"}

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Returns the components ``format``, ``cells``, ``solved`` and ``reward``, each in [0, 1]; never raises."""
        grid = "".join(completion.split()) if isinstance(completion, str) else ""
        puzzle = prompt_text(example.prompt)[:16]
        values = {"format": 0.0, "cells": 0.0, "solved": 0.0}
        if _GRID.fullmatch(grid):
            values = {"format": 1.0, "cells": _cells(grid, puzzle, example.answer), "solved": _solved(grid, puzzle)}
        return {**values, "reward": weighted_mean(values, self.weights)}


def _puzzles(seed: int, min_empty: int, max_empty: int) -> GymDataset:
    """Returns reasoning-gym's puzzles, which it would make itself in four times the time.

    It searches for the first grid that fits what is given, and at each removed cell for another one that fits what is
    left. There are 288 grids; here a bit for each says so.
    """
    from reasoning_gym.games.mini_sudoku import MiniSudokuConfig, MiniSudokuDataset

    class Puzzles(MiniSudokuDataset):
        def _solve(self, board: list[list[int]]) -> bool:
            given = [(cell, board[cell // 4][cell % 4]) for cell in range(16)]
            fitting = functools.reduce(int.__and__, (_grids_with()[cell][digit] for cell, digit in given if digit))
            if not fitting:
                return False
            first = _grids()[(fitting & -fitting).bit_length() - 1]
            board[:] = [[*first[row : row + 4]] for row in range(0, 16, 4)]
            return True

        def _create_puzzle(self, solved_board: list[list[int]], num_empty: int, rng: Random) -> list[list[int]]:
            cells = [(row, column) for row in range(4) for column in range(4)]
            rng.shuffle(cells)
            bits = [_grids_with()[4 * row + column][solved_board[row][column]] for row, column in cells]
            behind = [-1, *itertools.accumulate(reversed(bits), int.__and__)][::-1]  # with all cells from there on
            kept, removed = -1, set[tuple[int, int]]()
            for cell, own, others in zip(cells, bits, behind[1:], strict=True):
                if (kept & others).bit_count() > 1:
                    kept &= own
                    continue
                removed.add(cell)
                if len(removed) == num_empty:
                    break
            return [[0 if (i, j) in removed else solved_board[i][j] for j in range(4)] for i in range(4)]

        def __reduce__(self) -> tuple[Callable[[int, int, int], GymDataset], tuple[int, int, int]]:
            return _puzzles, (seed, min_empty, max_empty)  # pickle finds no class inside of a function

    start = start_of_stream("mini_sudoku", seed)
    return Puzzles(MiniSudokuConfig(min_empty=min_empty, max_empty=max_empty, seed=start))


@functools.cache
def _grids() -> list[list[int]]:
    """Returns the 288 solved grids, 16 digits each, in lexicographic order: a search finds the first that fits."""
    return [*_solved_grids([])]


@functools.cache
def _grids_with() -> list[dict[int, int]]:
    """Returns by cell and digit the solved grids that have it there, a bit for each of ``_grids``."""
    found: list[dict[int, int]] = [dict.fromkeys(range(1, 5), 0) for _ in range(16)]
    for number, grid in enumerate(_grids()):
        for cell, digit in enumerate(grid):
            found[cell][digit] |= 1 << number
    return found


def _solved_grids(begun: list[int]) -> Iterator[list[int]]:
    """Yields every solved grid that begins with some digits, in lexicographic order."""
    if len(begun) == 16:
        yield begun
        return
    groups = [group for group in _GROUPS if len(begun) in group]
    taken = {begun[cell] for group in groups for cell in group if cell < len(begun)}
    for digit in sorted({1, 2, 3, 4} - taken):
        yield from _solved_grids([*begun, digit])


def _text(board: list[list[int]]) -> str:
    return "".join(str(value) if value else "_" for row in board for value in row)


def _cells(grid: str, puzzle: str, solution: str) -> float:
    right = [mine == true for mine, given, true in zip(grid, puzzle, solution, strict=True) if given == "_"]
    return sum(right) / len(right) if right else 1.0


def _solved(grid: str, puzzle: str) -> float:
    kept = all(given in ("_", mine) for mine, given in zip(grid, puzzle, strict=True))
    return float(kept and all(len({grid[cell] for cell in group}) == 4 for group in _GROUPS))
