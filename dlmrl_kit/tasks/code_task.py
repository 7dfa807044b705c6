"""``CodeTask``: what tasks share whose answers are programs, scored by unit tests in a sandbox."""

from __future__ import annotations

import ast
from typing import Any

from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.code_in_answer import CodeInAnswer
from dlmrl_kit.rewards.tag_count import TagCount
from dlmrl_kit.rewards.unit_tests import UnitTests
from dlmrl_kit.sandbox.code_tests import Suite
from dlmrl_kit.tasks.text_task import TextTask


class CodeTask(TextTask):
    """Base class of tasks whose answers are programs.

    By default the reward is that of EGSPO: tags 0.5 at most, a program between the answer tags 0.5, the share of the
    unit tests that it passes 1. A completion solves its example if it passes all. ``meta["suite"]`` are the tests.
    """

    def published_rewards(self) -> list[RewardFunction]:
        """Returns tags, program in the answer, and unit tests."""
        return [TagCount(), CodeInAnswer(0.5), UnitTests()]

    def instruction(self) -> str:
        """Returns the form of the answer, which is a program."""
        return (
            f"Solve the problem with a Python program. {super().instruction()} The final answer is the whole program, "
            "in a block that begins with ```python and ends with ```."
        )


def fenced(program: str) -> str:
    """Returns a program as the answer to the task, in a fenced block."""
    return f"```python\n{program.strip()}\n```"


def code_meta(suite: Suite, head: str = "") -> dict[str, Any]:
    """Returns what ``UnitTests`` and ``CodeInAnswer`` need of an example.

    Args:
        suite: the tests.
        head: the head of a function that the model was given, with what stands before it.
    """
    return {"suite": suite.data(), "names": list(suite.names), "head": head}


def top_level(program: str) -> tuple[list[str], list[str]]:
    """Returns the names of functions and classes that a program defines, and those of the classes alone.

    Raises:
        ValueError: it is no Python.
    """
    try:
        body = ast.parse(program).body
    except SyntaxError as error:
        raise ValueError(f"the reference solution is no Python: {error}") from None
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [node for node in body if isinstance(node, kinds)]
    return [node.name for node in found], [node.name for node in found if isinstance(node, ast.ClassDef)]
