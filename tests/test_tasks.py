from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlmrl_kit.core.registry import Claims, register
from dlmrl_kit.core.validate import check
from dlmrl_kit.tasks import arithmetic
from dlmrl_kit.tasks.arithmetic import MAX_DEPTH, MAX_LENGTH, MAX_MAGNITUDE, evaluate, numbers
from dlmrl_kit.tasks.base import Example, Task, split_of, weighted_mean
from dlmrl_kit.tasks.countdown import Countdown
from dlmrl_kit.tasks.sudoku import Sudoku4x4

SMALL = {"num_pretrain": 60, "num_train": 60, "num_heldout": 30}
SUDOKU = Sudoku4x4(**SMALL)
COUNTDOWN = Countdown(**SMALL)
TASKS = [SUDOKU, COUNTDOWN]
COMPONENTS = {Sudoku4x4: {"format", "cells", "solved", "reward"}, Countdown: {"format", "solved", "reward"}}
PUZZLE = Example("1_3__4_22_4__3_1:", "1234341221434321")
TARGET = Example("71 33 12=116:", "71+33+12")

both_tasks = pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)


def texts(task: Task, split: str) -> list[str]:
    return [task.canonical(task.example(split, index)) for index in range(task.size(split))]


# ---------------------------------------------------------------- splits, sizes, determinism


class Counting(Task):
    """Candidate n is the text of n // repeat, modulo ``distinct``; odd numbers of the stream fail if ``holes``."""

    generator_parameters = ("distinct",)
    max_misses = 200

    def __init__(
        self, distinct: int = 10**9, repeat: int = 1, holes: bool = False, sizes: tuple[int, int, int] = (9,) * 3
    ):
        super().__init__(*sizes)
        self.distinct, self.repeat, self.holes = distinct, repeat, holes
        self.asked: list[int] = []

    def candidate(self, number: int) -> Example | None:
        self.asked.append(number)
        return None if self.holes and number % 2 else Example(str(number // self.repeat % self.distinct), "")

    def score(self, completion: str, example: Example) -> dict[str, float]:
        return {"reward": 0.0, "solved": 0.0}


def test_splits_follow_the_hash_and_drop_duplicates() -> None:
    expected: dict[str, list[str]] = {split: [] for split in Task.SPLITS}
    for number in range(500):
        expected[split_of(str(number))].append(str(number))
    for task in (Counting(), Counting(repeat=3)):
        for split in Task.SPLITS:
            assert texts(task, split) == expected[split][:9]


def test_split_shares_and_stability() -> None:
    found = [split_of(f"puzzle {number}") for number in range(20000)]
    for split, share in (("pretrain", 0.4), ("train", 0.4), ("heldout", 0.2)):
        assert abs(found.count(split) / 20000 - share) < 0.02
    # Known values: a change of the hash would silently move held-out puzzles into training.
    assert [split_of(text) for text in "abcdef"] == ["pretrain", "pretrain", "pretrain", "heldout", "train", "train"]


def test_generated_lazily_once_and_independent_of_the_order_of_calls() -> None:
    task, other = Counting(), Counting()
    assert task.asked == []
    last = task.example("train", 8)
    assert task.example("train", 8) is last
    assert task.asked == list(range(len(task.asked)))
    for split in reversed(Task.SPLITS):
        texts(other, split)
    assert [texts(task, split) for split in Task.SPLITS] == [texts(other, split) for split in Task.SPLITS]
    assert len(task.asked) == len(set(task.asked))


@pytest.mark.parametrize("order", list(itertools.permutations(Task.SPLITS)))
def test_shortage_is_an_error_that_names_parameters_and_does_not_depend_on_the_order(order: tuple[str, ...]) -> None:
    task = Counting(distinct=30, holes=True, sizes=(1000, 0, 1000))
    for split in order:
        available = sum(split_of(str(number)) == split for number in range(0, 30, 2))
        for index in range(available if task.size(split) else 0):
            task.example(split, index)
        if task.size(split):
            with pytest.raises(ValueError, match=rf"Counting: num_{split} is 1000, but only {available} .*distinct"):
                task.example(split, available)
            asked = len(task.asked)
            with pytest.raises(ValueError, match="lower num_"):
                task.example(split, 999)
            assert len(task.asked) == asked <= 30 + 3 * 200


def test_generator_that_always_fails_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Countdown, "max_misses", 30)
    with pytest.raises(ValueError, match="only 0 distinct puzzles"):
        Countdown(min_numbers=2, max_numbers=2, max_value=3, min_target=8, max_target=8).example("heldout", 0)


@both_tasks
def test_index_and_split_errors(task: Task) -> None:
    for split in Task.SPLITS:
        for index in (task.size(split), task.size(split) + 10**9, -1):
            with pytest.raises(IndexError, match=split):
                task.example(split, index)
    with pytest.raises(ValueError, match=r"\.split must be one of pretrain, train, heldout, got 'test'"):
        task.example("test", 0)
    with pytest.raises(ValueError, match="'test'"):
        task.size("test")
    assert task.size("heldout") == 30
    with pytest.raises(TypeError):
        task.example("train", 1.0)  # type: ignore[arg-type]


VARIANTS: list[list[Task]] = [
    [
        Sudoku4x4(min_empty=low, max_empty=high, seed=seed, **SMALL)
        for (low, high), seed in itertools.product([(6, 10), (1, 2), (4, 8)], (0, 1))
    ],
    [Countdown(max_value=high, max_target=50, seed=seed, **SMALL) for high, seed in itertools.product((9, 20), (0, 1))],
]


@pytest.mark.parametrize("variants", VARIANTS, ids=["Sudoku4x4", "Countdown"])
def test_splits_are_disjoint_between_seeds_and_difficulties(variants: list[Task]) -> None:
    contents = [{split: set(texts(task, split)) for split in Task.SPLITS} for task in variants]
    for (number, mine), other in itertools.product(enumerate(contents), contents):
        for one, two in itertools.permutations(Task.SPLITS, 2):
            assert not mine[one] & other[two]
        for split in Task.SPLITS:
            assert len(mine[split]) == variants[number].size(split)  # no duplicates


def test_seeds_give_other_puzzles_not_a_shifted_stream() -> None:
    first, second = (set(texts(Sudoku4x4(seed=seed, **SMALL), "train")) for seed in (0, 1))
    assert len(first & second) < 5


def dump(task: Task) -> list[list[Any]]:
    examples = (task.example(split, index) for split in Task.SPLITS for index in range(20))
    return [[example.prompt, example.answer, example.meta] for example in examples]


def test_same_examples_in_another_process_and_cheap_import() -> None:
    code = (
        "import json, sys\n"
        "from dlmrl_kit.tasks import arithmetic, base, countdown, sudoku\n"
        "from dlmrl_kit.core import validate\n"
        "assert not {'torch', 'tensordict', 'reasoning_gym', 'sympy'} & set(sys.modules)\n"
        "tasks = sudoku.Sudoku4x4(seed=3), countdown.Countdown(seed=3)\n"
        "assert not {'torch', 'reasoning_gym'} & set(sys.modules)\n"
        "examples = lambda t: [t.example(s, i) for s in t.SPLITS for i in range(20)]\n"
        "print(json.dumps([[[e.prompt, e.answer, e.meta] for e in examples(t)] for t in tasks]))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [dump(Sudoku4x4(seed=3)), dump(Countdown(seed=3, **SMALL))]


@both_tasks
def test_tasks_can_be_pickled(task: Task) -> None:
    task.example("heldout", 3)
    copy = pickle.loads(pickle.dumps(task))
    assert dump(copy) == dump(task)


@both_tasks
def test_registered(task: Task) -> None:
    from dlmrl_kit.core import registry

    entries = registry._COMPONENTS["task", type(task).__name__]
    assert [(entry.cls, entry.claims) for entry in entries] == [(type(task), Claims())]
    assert entries[0].summary
    assert not any(parameter.required for parameter in entries[0].parameters)
    assert register is registry.register


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (Sudoku4x4, {"min_empty": 0}, "Sudoku4x4.min_empty must be an integer from 1 to 10, got 0"),
        (Sudoku4x4, {"max_empty": 13}, "Sudoku4x4.max_empty must be an integer from 1 to 12, got 13"),
        (Sudoku4x4, {"min_empty": 9, "max_empty": 8}, "min_empty must be an integer from 1 to 8, got 9"),
        (Sudoku4x4, {"min_empty": 6.0}, "min_empty must be an integer"),
        (Sudoku4x4, {"num_train": -1}, "Sudoku4x4.num_train must be an integer, at least 0, got -1"),
        (Sudoku4x4, {"num_heldout": True}, "num_heldout must be an integer"),
        (Sudoku4x4, {"num_pretrain": 1e4}, "num_pretrain must be an integer"),
        (Sudoku4x4, {"seed": -1}, "seed must be"),
        (Sudoku4x4, {"cells_weight": -0.1}, "cells_weight must be a finite number, at least 0, got -0.1"),
        (Sudoku4x4, {"solved_weight": float("nan")}, "solved_weight must be"),
        (Sudoku4x4, {"solved_weight": float("inf")}, "solved_weight must be"),
        (Sudoku4x4, {"solved_weight": 0, "cells_weight": 0}, r"solved_weight \+ .* must be positive"),
        (Sudoku4x4, {"solved_weight": 1.7e308, "cells_weight": 1.7e308}, "positive and finite"),
        (Countdown, {"min_numbers": 1}, "Countdown.min_numbers must be an integer from 2 to 3, got 1"),
        (Countdown, {"max_numbers": 9}, "max_numbers must be"),
        (Countdown, {"min_value": 0}, "min_value must be"),
        (Countdown, {"max_value": 1001}, "max_value must be"),
        (Countdown, {"min_value": 100}, "min_value must be"),
        (Countdown, {"max_target": 9}, "min_target must be an integer from 1 to 9, got 10"),
        (Countdown, {"min_target": 0}, "min_target must be"),
        (Countdown, {"max_value": 2, "min_target": 9}, "min_target must be reachable: at most 8, got 9"),
        (Countdown, {"max_value": 1, "min_target": 4}, "min_target must be reachable: at most 3, got 4"),
        (Countdown, {"solved_weight": "1"}, "solved_weight must be"),
        (Countdown, {"solved_weight": 0, "format_weight": 0}, "positive"),
    ],
)
def test_parameter_errors(cls: type[Task], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)  # type: ignore[arg-type]


def test_check() -> None:
    check(True, SUDOKU, "x", 1, "anything")
    with pytest.raises(ValueError, match=r"^Sudoku4x4\.x must be 2, got '1'$"):
        check(False, SUDOKU, "x", "1", "2")


# ---------------------------------------------------------------- every scorer, any text


def assert_scores(task: Task, scores: dict[str, float]) -> None:
    assert set(scores) == COMPONENTS[type(task)]
    assert all(type(value) is float and 0.0 <= value <= 1.0 for value in scores.values())
    assert scores["solved"] in (0.0, 1.0)


SENTINEL = f"{tempfile.gettempdir()}/dlmrl_kit_test_tasks_{os.getpid()}"
HOSTILE = {
    "tower": "9**9**9",
    "tower of three": "95**64**93",
    "spaced tower": "9 * * 9",
    "import": f"__import__('os').system('touch {SENTINEL}')",
    "open": f"open('{SENTINEL}','w').write('x')",
    "factorial": "factorial(10**7)",
    "nested parentheses": "(" * 10000 + "1" + ")" * 10000,
    "unclosed parentheses": "(" * 200,
    "nested to the limit": "(" * 127 + "1" + ")" * 127,
    "minus signs": "-" * 255 + "1",
    "megabyte of digits": "9" * 2**20,
    "megabyte of ones and pluses": "1+" * 2**19 + "1",
    "megabyte of spaces": " " * 2**20,
    "megabyte of digits and spaces": "1 " * 2**19,
    "megabyte of letters": "é" * 2**20,
    "null": "\0",
    "null inside": "71+33\0+12",
    "null in the grid": "123434122143432\0",
    "fullwidth digits": "７１＋３３＋１２",
    "fullwidth one": "１+33+12",
    "fullwidth grid": "１２３４３４１２２１４３４３２１",
    "superscript grid": "1²34341221434321",
    "superscript": "²",
    "arabic grid": "١٢٣٤٣٤١٢٢١٤٣٤٣٢١",
    "underscore": "1_000",
    "underscore in a number": "7_1+33+12",
    "hexadecimal": "0x10",
    "hexadecimal sum": "0x47+33+12",
    "float": "1e9",
    "decimal point": "71.0+33+12",
    "complex": "71+33+12+0j",
    "floor division": "1//0",
    "division by zero": "1/0",
    "lambda": "(lambda: 71+33+12)()",
    "walrus": "(x:=71)+33+12",
    "f-string": "f'{71+33+12}'",
    "comprehension": "[71 for _ in iter(int, 1)]",
    "call": "71(33)+12",
    "comma": "71,33,12",
    "tuple": "()",
    "starred": "(*71)",
    "unary plus": "+71+33+12",
    "comparison": "71+33+12==116",
    "with its target": "71+33+12=116",
    "comment": "71+33+12#",
    "two expressions": "71+33+12 71+33+12",
    "line break": "71+33\n+12",
    "continued line": "71+33\\\n+12",
    "leading zero": "071+33+12",
    "surrogate": "\ud800",
    "bidirectional": "\u202e71+33+12",
    "statement": "import os",
    "await": "await 1",
    "yield": "(yield)",
    "empty": "",
    "spaces": " \t\r\n\f\v\u00a0",
    "none": "None",
    "prompt again": "1_3__4_22_4__3_1",
    "grid with text": "The grid is 1234341221434321",
    "one more": "12343412214343211",
    "commas": "1,2,3,4,3,4,1,2,2,1,4,3,4,3,2,1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_completions(name: str) -> None:
    for task, example in ((SUDOKU, PUZZLE), (COUNTDOWN, TARGET)):
        start = time.perf_counter()
        scores = task.score(HOSTILE[name], example)
        assert time.perf_counter() - start < 0.5
        assert_scores(task, scores)
        assert scores == dict.fromkeys(scores, 0.0)
    assert not Path(SENTINEL).exists()


@pytest.mark.parametrize(
    "completion",
    [None, b"1234341221434321", 7, 1.5, ["71+33+12"], {}, object()],
    ids=lambda value: type(value).__name__,
)
def test_completions_that_are_not_text(completion: Any) -> None:
    for task, example in ((SUDOKU, PUZZLE), (COUNTDOWN, TARGET)):
        scores = task.score(completion, example)
        assert scores == dict.fromkeys(COMPONENTS[type(task)], 0.0)


any_text = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.text("0123456789+-*/() _.xe", max_size=40),
    st.text("1234", min_size=16, max_size=16),
)


@settings(max_examples=400, deadline=None)
@given(any_text)
def test_any_text(text: str) -> None:
    for task, example in ((SUDOKU, PUZZLE), (COUNTDOWN, TARGET)):
        assert_scores(task, task.score(text, example))


@both_tasks
def test_the_answer_of_every_example_scores_one(task: Task) -> None:
    for split in Task.SPLITS:
        for index in range(task.size(split)):
            example = task.example(split, index)
            for completion in (example.answer, f"  {example.answer}\n\n"):
                scores = task.score(completion, example)
                assert_scores(task, scores)
                assert scores == dict.fromkeys(scores, 1.0)


def test_weighted_mean() -> None:
    names = "abc"
    weights = dict(zip(names, (0.1, 0.2, 0.7), strict=True))
    assert weighted_mean(dict.fromkeys(names, 1.0), weights) == 1.0
    assert weighted_mean(dict.fromkeys(names, 0.0), weights) == 0.0
    assert weighted_mean({"a": 0.5, "b": 0.0, "c": 1.0}, {"a": 1, "b": 3, "c": 0}) == 0.125


# ---------------------------------------------------------------- Sudoku

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


# ---------------------------------------------------------------- arithmetic

Tree = Any  # an int, ("-", tree), or (operator, tree, tree)

trees = st.recursive(
    st.integers(0, 10**4),
    lambda inner: st.one_of(st.tuples(st.just("-"), inner), st.tuples(st.sampled_from("+-*/"), inner, inner)),
    max_leaves=12,
)


def tree_value(tree: Tree) -> Fraction | None:
    """Value of the tree by Fraction operators; None where a part divides by zero or exceeds the bound."""
    if isinstance(tree, int):
        return Fraction(tree)
    parts = [tree_value(part) for part in tree[1:]]
    if any(part is None for part in parts):
        return None
    if len(parts) == 1:
        return -parts[0]  # type: ignore[operator]
    left, right = parts
    if tree[0] == "/" and right == 0:
        return None
    result = {"+": "__add__", "-": "__sub__", "*": "__mul__", "/": "__truediv__"}[tree[0]]
    value = getattr(left, result)(right)
    return value if max(abs(value.numerator), value.denominator) <= MAX_MAGNITUDE else None


def tree_leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else [leaf for part in tree[1:] for leaf in tree_leaves(part)]


def full_text(tree: Tree) -> str:
    """Parentheses around every operation."""
    if isinstance(tree, int):
        return str(tree)
    if len(tree) == 2:
        return f"(-{full_text(tree[1])})"
    return f"({full_text(tree[1])}{tree[0]}{full_text(tree[2])})"


LEVEL = {"+": 1, "-": 1, "*": 2, "/": 2}


def short_text(tree: Tree, level: int = 0) -> str:
    """Parentheses only where precedence and left associativity demand them, with spaces."""
    if isinstance(tree, int):
        return str(tree)
    if len(tree) == 2:
        own, text = 3, f"-{short_text(tree[1], 3)}"
    else:
        own = LEVEL[tree[0]]
        text = f"{short_text(tree[1], own)} {tree[0]} {short_text(tree[2], own + 1)}"
    return f"({text})" if own < level else text


@settings(max_examples=600, deadline=None)
@given(trees)
def test_evaluate_agrees_with_the_tree(tree: Tree) -> None:
    for text in (full_text(tree), short_text(tree), f" {short_text(tree)}\n"):
        if len(text.strip()) <= MAX_LENGTH:
            assert evaluate(text) == tree_value(tree)
            assert numbers(text) == sorted(tree_leaves(tree))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/3+1/3+1/3", Fraction(1)),
        ("7-2-3", Fraction(2)),
        ("8/4/2", Fraction(1)),
        ("2+3*4", Fraction(14)),
        ("-2*3", Fraction(-6)),
        ("2--3", Fraction(5)),
        ("2*-3", Fraction(-6)),
        ("(((7)))", Fraction(7)),
        ("0", Fraction(0)),
        ("0*5", Fraction(0)),
        ("\t 1 + 2\r\n", Fraction(3)),
        ("100000000000000000000*10000000000", Fraction(10**30)),
        ("+".join(["1"] * 128), Fraction(128)),
        ("-" * MAX_DEPTH + "1", Fraction(1)),
    ],
)
def test_evaluate_known_values(text: str, value: Fraction) -> None:
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "1/0",
        "1/(2-2)",
        "0/0",
        "1/(1/(3-3))",
        "100000000000000000000*10000000001",
        "1/100000000000000000000/10000000001",
        f"{10**30 + 1}",
        f"{10**30 + 1}-{10**30 + 1}",
        "-" * (MAX_DEPTH + 1) + "1",
        "1" + "+1" * 128,
        "00",
        "01+2",
        "2(3)",
        "(2)(3)",
        "2 (3)",
        "1 2",
        "1+",
        "*1",
        "()",
        "(1",
        "1)",
        "(1,)",
        "-",
        "/",
        "~1",
        "1%2",
        "1<2",
        "1if 1else 1",
    ],
)
def test_evaluate_rejects(text: str) -> None:
    assert evaluate(text) is None


@pytest.mark.parametrize("name", HOSTILE)
def test_evaluate_rejects_hostile_text(name: str) -> None:
    value = evaluate(HOSTILE[name])
    if name == "nested to the limit":  # valid where Python's parser goes that deep
        assert value in (None, 1)
    elif name == "one more":  # no Sudoku grid, but a number
        assert value == int(HOSTILE[name])
    else:
        assert value is None
    assert not Path(SENTINEL).exists()


def test_numbers() -> None:
    assert numbers("3*(1+3)-0/12") == [0, 1, 3, 3, 12]
    assert numbers("1/0") == [0, 1]
    for text in ("", "1**2", "1,2", "x", "１", "1.0", "[1]"):
        assert numbers(text) is None


def test_python_parser_failures_are_invalid_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError, RecursionError, SyntaxError, ValueError):

        def fail(*_: Any, error: type[Exception] = error, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(arithmetic.ast, "parse", fail)
            assert evaluate("1+1") is None
            assert numbers("1+1") is None


def test_no_syntax_warnings() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in [*HOSTILE.values(), "1(2)", "(1)(2)", "1 (2)", "1-(2)"]:
            evaluate(text)


# ---------------------------------------------------------------- Countdown


@pytest.mark.parametrize(
    ("completion", "format_", "solved"),
    [
        ("71+33+12", 1, 1),
        ("12+(33+71)", 1, 1),
        (" 12 - -33 + 71 ", 1, 1),
        ("71+33-12", 1, 0),
        ("71*33*12", 1, 0),
        ("-71-33-12", 1, 0),
        ("116", 0, 0),
        ("71+33", 0, 0),
        ("71+33+12+0", 0, 0),
        ("71+33+12*1", 0, 0),
        ("71+33+6+6", 0, 0),
        ("71+71-71+33+12", 0, 0),
        ("71+33+12=116", 0, 0),
        ("71+33+12:", 0, 0),
        ("71/(33-33)+12", 0, 0),
        ("12/(71-71)+33", 0, 0),
    ],
)
def test_countdown_known_scores(completion: str, format_: int, solved: int) -> None:
    expected = {"format": format_, "solved": solved, "reward": 0.9 * solved + 0.1 * format_}
    assert COUNTDOWN.score(completion, TARGET) == pytest.approx(expected)


def test_countdown_repeated_numbers_and_exactness() -> None:
    twice = Example("5 5 2=20:", "(5+5)*2")
    assert COUNTDOWN.score("(5+5)*2", twice)["solved"] == 1
    assert COUNTDOWN.score("(5+2)*2", twice)["format"] == 0
    thirds = Example("1 3 3=1:", "1/3*3")
    assert COUNTDOWN.score("1/3*3", thirds)["solved"] == 1
    # Equal in floating point, not exactly: (10**6 * 10**6 * 10**6 + 1) / 10**18 is not 1.
    large = Example("1000000 1000000 1000000 1 1000000 1000000 1000000=1:", "")
    almost = "(1000000*1000000*1000000+1)/1000000/1000000/1000000"
    assert eval(almost) == 1.0
    assert COUNTDOWN.score(almost, large) == pytest.approx({"format": 1, "solved": 0, "reward": 0.1})


def test_countdown_division_by_zero_with_the_right_numbers_has_no_format() -> None:
    example = Example("4 2 2=8:", "4*(2+2)/2")
    assert COUNTDOWN.score("4/(2-2)", example) == {"format": 0, "solved": 0, "reward": 0}


def test_countdown_puzzles_keep_to_their_ranges() -> None:
    task = Countdown(2, 4, min_value=2, max_value=12, min_target=5, max_target=60, **SMALL)
    lengths = set()
    for index in range(30):
        example = task.example("train", index)
        given_numbers, target = example.meta["numbers"], example.meta["target"]
        assert example.prompt == f"{' '.join(map(str, given_numbers))}={target}:"
        assert all(2 <= number <= 12 for number in given_numbers)
        assert 5 <= target <= 60
        assert " " not in example.answer
        assert evaluate(example.answer) == target
        lengths.add(len(given_numbers))
    assert lengths == {2, 3, 4}


def test_countdown_order_of_the_numbers_does_not_make_another_puzzle() -> None:
    orders = [Example(f"{' '.join(order)}=116:", "") for order in itertools.permutations(("71", "33", "12"))]
    assert len({COUNTDOWN.canonical(example) for example in orders}) == 1
    assert len({split_of(COUNTDOWN.canonical(example)) for example in orders}) == 1


def test_countdown_unsuitable_candidates_are_dropped() -> None:
    class Fake:
        def __getitem__(self, number: int) -> dict[str, Any]:
            if number == 0:
                raise ValueError("Failed to generate")
            right = {"numbers": [2, 3], "target": 6, "expression": "2 * 3"}
            return {"metadata": {**right, "expression": "2 + 3"} if number == 1 else right}

    task = Countdown()
    task._puzzles = Fake()
    assert [task.candidate(0), task.candidate(1)] == [None, None]
    assert task.candidate(2) == Example("2 3=6:", "2*3", {"numbers": [2, 3], "target": 6})
