"""KodCode: generated programming problems with unit tests for pytest, arXiv 2503.02951."""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.rewards.unit_tests import UnitTests
from dlmrl_kit.sandbox.code_tests import Suite
from dlmrl_kit.sandbox.inside.program import MODULE
from dlmrl_kit.sandbox.packages import foreign_imports
from dlmrl_kit.tasks.code_task import CodeTask, code_meta, fenced, top_level
from dlmrl_kit.tasks.question_splits import Question
from dlmrl_kit.tasks.rows import Row
from dlmrl_kit.tasks.text_task import TextTask


@register("task", paper="arXiv 2503.02951; arXiv 2603.12554")
class KodCode(CodeTask):
    """Generated programming problems: KodCode-Light-RL-10K, of which 90% are trained on.

    A row has ``question``, ``solution``, ``test``, a module for pytest that imports from ``solution``, and
    ``test_info`` with the declarations of what is to be written. Each test function is one test. Left out, and counted
    in ``notes``, are rows whose tests need fixtures or coroutines, and rows that need packages which programs may not
    import (``UnitTests.packages``). Arguments, raises as ``TextTask``.
    """

    sample = (
        {
            "question": "Write a function that returns the second largest of the different numbers of a list, or None.",
            "solution": "def second(values):\n    found = sorted(set(values))\n"
            "    return found[-2] if found[1:] else None",
            "test": "from solution import second\n\ndef test_some():\n    assert second([3, 1, 3, 2]) == 2\n\n"
            "def test_none():\n    assert second([1, 1]) is None\n",
            "test_info": [{"function_name": "second", "function_declaration": "def second(values):"}],
        },
        {
            "question": "Write a function that joins words with commas, and puts 'and' before the last one.",
            "solution": "def listed(words):\n"
            "    return ', '.join(words[:-1]) + ' and ' * bool(words[1:]) + ''.join(words[-1:])",
            "test": "from solution import listed\n\ndef test_three():\n"
            "    assert listed(['a', 'b', 'c']) == 'a, b and c'\n\n"
            "def test_few():\n    assert listed(['a']) == 'a'\n    assert listed([]) == ''\n",
            "test_info": [{"function_name": "listed", "function_declaration": "def listed(words):"}],
        },
        {
            "question": "Write a function that divides two numbers and raises ValueError for a division by 0.",
            "solution": "def divide(a, b):\n    if b == 0:\n        raise ValueError('division by 0')\n"
            "    return a / b",
            "test": "import pytest\nfrom solution import divide\n\ndef test_divide():\n"
            "    assert divide(1, 4) == 0.25\n\n"
            "def test_zero():\n    with pytest.raises(ValueError):\n        divide(1, 0)\n",
            "test_info": [{"function_name": "divide", "function_declaration": "def divide(a, b):"}],
        },
    )

    @with_parameters_of(TextTask)
    def __init__(
        self,
        data: str = "KodCode/KodCode-Light-RL-10K",
        test_split: str | None = None,
        holdout: int = 1000,
        **others: Any,
    ) -> None:
        super().__init__(data=data, test_split=test_split, holdout=holdout, **others)
        self._left_out: Counter[str] = Counter()

    def notes(self) -> list[str]:
        """Returns where the examples are from, and which rows were left out and why."""
        notes = super().notes()
        return [*notes, *(f"{count} rows are left out: {reason}" for reason, count in self._left_out.most_common())]

    def question(self, row: Row) -> Question | None:
        """Returns the problem with what is to be declared, the tests, and the reference solution; None if left out."""
        program, tests = str(row["solution"]), str(row["test"])
        names, classes = top_level(program)
        try:
            suite = Suite("module", tests, tuple(_imported(tests) or names), tuple(classes))
        except ValueError as error:
            self._left_out[str(error)] += 1
            return None
        allowed = {name for reward in self.rewards if isinstance(reward, UnitTests) for name in reward.packages or ()}
        if "pytest" in foreign_imports(tests) and importlib.util.find_spec("pytest") is None:
            raise UserError("KodCode's tests need the package pytest: pip install 'dlmrl-kit[tasks]'")
        needed = (foreign_imports(program) | foreign_imports(tests) - {"pytest"}) - allowed - {MODULE}
        if needed:
            self._left_out[f"they need {', '.join(sorted(needed))}"] += 1
            return None
        declared = [str(entry["function_declaration"]) for entry in row.get("test_info") or ()]
        shown = ["", "Declare:", fenced("\n".join(declared))] if any(declared) else []
        text = "\n".join([str(row["question"]).strip(), *shown])
        return Question(text, code_meta(suite), fenced(program))


def _imported(tests: str) -> list[str]:
    """Returns the names that tests import from the solution; none where they import all of it."""
    found = [
        alias.name
        for node in ast.walk(ast.parse(tests))
        if isinstance(node, ast.ImportFrom) and node.module == MODULE
        for alias in node.names
    ]
    return [] if "*" in found else found
