"""Small tasks, one example of each, texts that try to do harm, and what any score must be."""

from __future__ import annotations

import itertools
import os
import tempfile

from dlmrl_kit.tasks.base import Example, Task
from dlmrl_kit.tasks.countdown import Countdown
from dlmrl_kit.tasks.sudoku import Sudoku4x4

SMALL = {"num_pretrain": 60, "num_train": 60, "num_heldout": 30}
SUDOKU = Sudoku4x4(**SMALL)
COUNTDOWN = Countdown(**SMALL)
COMPONENTS = {Sudoku4x4: {"format", "cells", "solved", "reward"}, Countdown: {"format", "solved", "reward"}}
PUZZLE = Example("1_3__4_22_4__3_1:", "1234341221434321")
TARGET = Example("71 33 12=116:", "71+33+12")


def texts(task: Task, split: str) -> list[str]:
    return [task.canonical(task.example(split, index)) for index in range(task.size(split))]


VARIANTS: list[list[Task]] = [
    [
        Sudoku4x4(min_empty=low, max_empty=high, seed=seed, **SMALL)
        for (low, high), seed in itertools.product([(6, 10), (1, 2), (4, 8)], (0, 1))
    ],
    [Countdown(max_value=high, max_target=50, seed=seed, **SMALL) for high, seed in itertools.product((9, 20), (0, 1))],
]


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
