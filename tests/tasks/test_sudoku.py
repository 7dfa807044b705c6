"""Sudoku: puzzles, and scores against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tasks import PUZZLE, SMALL, SUDOKU, VARIANTS

from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.gym_dataset import gym_dataset
from dlmrl_kit.tasks.sudoku import Sudoku4x4, _puzzles

CELLS = [(row, column, 2 * (row // 2) + column // 2) for row in range(4) for column in range(4)]


def solutions(puzzle: str) -> Iterator[str]:
    """Brute force: all completions of a puzzle, by trying digits cell after cell."""
    if "_" not in puzzle:
        yield puzzle
        return
    cell = puzzle.index("_")
    seen = {
        puzzle[other]
        for other in range(16)
        if other != cell and any(mine == theirs for mine, theirs in zip(CELLS[cell], CELLS[other], strict=True))
    }
    for digit in "1234":
        if digit not in seen:
            yield from solutions(puzzle[:cell] + digit + puzzle[cell + 1 :])


ALL_GRIDS = set(solutions("_" * 16))


def test_sudoku_puzzles_have_one_solution_and_the_right_number_of_empty_cells() -> None:
    assert len(ALL_GRIDS) == 288
    for task in VARIANTS[0]:
        assert isinstance(task, Sudoku4x4)
        for index in range(30):
            example = task.example("train", index)
            assert len(example.prompt) == 17
            assert example.prompt[16] == ":"
            assert list(solutions(example.prompt[:16])) == [example.answer]
            assert task.min_empty <= example.prompt.count("_") == example.meta["num_empty"] <= task.max_empty


@settings(max_examples=15, deadline=None)
@given(least=st.integers(1, 12), more=st.integers(0, 11), seed=st.integers(0, 2**40))
def test_puzzles_are_those_of_reasoning_gym(least: int, more: int, seed: int) -> None:
    """The faster search takes the same cells out."""
    most = min(12, least + more)
    theirs = gym_dataset("mini_sudoku", seed, min_empty=least, max_empty=most)
    ours = _puzzles(seed, least, most)
    assert [ours[number] for number in range(5)] == [theirs[number] for number in range(5)]


def test_hardest_sudokus_can_be_generated() -> None:
    task = Sudoku4x4(min_empty=12, max_empty=12, **SMALL)
    assert {task.example("heldout", index).meta["num_empty"] for index in range(30)} == {12}


def test_sudoku_solved_agrees_with_brute_force() -> None:
    for index in range(10):
        example = SUDOKU.example("train", index)
        for grid in ALL_GRIDS:
            assert SUDOKU.score(grid, example)["solved"] == float(grid == example.answer)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(ALL_GRIDS)), st.sets(st.integers(0, 15), max_size=10), st.data())
def test_sudoku_any_valid_completion_counts(grid: str, empty: set[int], data: st.DataObject) -> None:
    puzzle = "".join("_" if cell in empty else digit for cell, digit in enumerate(grid))
    every = set(solutions(puzzle))
    example = Example(puzzle + ":", grid)
    completion = data.draw(st.sampled_from(sorted(every)) | st.text("1234", min_size=16, max_size=16))
    assert SUDOKU.score(completion, example)["solved"] == float(completion in every)


def test_sudoku_every_single_wrong_cell() -> None:
    for index in range(15):
        example = SUDOKU.example("pretrain", index)
        num_empty = example.meta["num_empty"]
        for cell, digit in itertools.product(range(16), "1234"):
            wrong = example.answer[:cell] + digit + example.answer[cell + 1 :]
            if wrong == example.answer:
                continue
            cells = 1 - 1 / num_empty if example.prompt[cell] == "_" else 1.0
            scores = SUDOKU.score(wrong, example)
            assert scores == pytest.approx({"format": 1.0, "cells": cells, "solved": 0.0, "reward": cells / 2})


def test_sudoku_known_scores() -> None:
    assert list(solutions(PUZZLE.prompt[:16])) == [PUZZLE.answer]
    task = Sudoku4x4(solved_weight=2, cells_weight=1, format_weight=1)
    assert task.score("1234\n3412\n2143\n4321\n", PUZZLE) == {"format": 1, "cells": 1, "solved": 1, "reward": 1}
    # All ones: 2 of the 8 empty cells are right; the givens are overwritten.
    assert task.score("1" * 16, PUZZLE) == {"format": 1, "cells": 0.25, "solved": 0, "reward": 1.25 / 4}
    assert task.score("0" * 16, PUZZLE) == {"format": 0, "cells": 0, "solved": 0, "reward": 0}


def test_puzzles_and_cells_are_reported_apart() -> None:
    from dlmrl_kit.rewards.right_cells import RightCells
    from dlmrl_kit.tasks.sudoku_puzzles import Sudoku4x4Puzzles

    own, published = Sudoku4x4(num_train=1), Sudoku4x4Puzzles(rewards=[RightCells(name="share")])
    for task, cells in ((own, "cells"), (published.sketch(), "share")):
        assert task.metrics() == {"solved": "accuracy", cells: "right cells"}
        assert task.metrics().keys() <= task.score("", task.example("train", 0)).keys()
