"""MBPP: short programs for beginners, arXiv 2108.07732, in the sanitized edition."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.validate import check
from dlmrl_kit.sandbox.code_tests import Suite
from dlmrl_kit.tasks.code_task import CodeTask, code_meta, fenced, top_level
from dlmrl_kit.tasks.question_splits import Question
from dlmrl_kit.tasks.rows import Row
from dlmrl_kit.tasks.text_task import TextTask


@register("task", paper="arXiv 2108.07732; arXiv 2603.12554")
class MBPP(CodeTask):
    """Short programs for beginners: the sanitized edition, with the published training and test set (120 and 257).

    A row has ``prompt`` (in the full edition ``text``), ``code``, ``test_list``, assertions each of which is one test,
    and ``test_imports`` (``test_setup_code``). As published the model sees the assertions, which say how the function
    is called. Arguments, raises as ``TextTask``, and:

    Args:
        shown_tests: how many assertions the question shows, from the first; None: all.
    """

    sample = (
        {
            "prompt": "Write a function to double every second number of a list.",
            "code": "def double_second(values):\n    return [v * 2 if i % 2 else v for i, v in enumerate(values)]",
            "test_imports": [],
            "test_list": ["assert double_second([1, 2, 3, 4]) == [1, 4, 3, 8]", "assert double_second([]) == []"],
        },
        {
            "prompt": "Write a function to find the area of a circle with a given radius.",
            "code": "import math\ndef circle(radius):\n    return math.pi * radius ** 2",
            "test_imports": ["import math"],
            "test_list": ["assert math.isclose(circle(2), 12.566370614)", "assert circle(0) == 0"],
        },
        {
            "prompt": "Write a function to count the words of a text that begin with a capital letter.",
            "code": "def capitals(text):\n    return sum(word[0].isupper() for word in text.split())",
            "test_imports": [],
            "test_list": ["assert capitals('Anna met Bo') == 2", "assert capitals('') == 0"],
        },
    )

    pinned = {"google-research-datasets/mbpp": "4bb6404fdc6cacfda99d4ac4205087b89d32030c"}

    @with_parameters_of(TextTask)
    def __init__(
        self,
        data: str = "google-research-datasets/mbpp",
        config: str | None = "sanitized",
        shown_tests: int | None = None,
        **others: Any,
    ) -> None:
        check(shown_tests is None or shown_tests >= 0, self, "shown_tests", shown_tests, "at least 0, or None")
        self.shown_tests = shown_tests
        super().__init__(data=data, config=config, **others)

    def question(self, row: Row) -> Question:
        """Returns the problem with assertions, the tests, and the reference solution."""
        tests, program = [str(test) for test in row["test_list"]], str(row["code"]).replace("\r\n", "\n")
        setup = "\n".join(row["test_imports"]) if "test_imports" in row else str(row.get("test_setup_code") or "")
        names, classes = top_level(program)
        suite = Suite("statements", tuple(tests), tuple(names), tuple(classes), setup)
        shown = tests[: self.shown_tests]
        text = str(row["prompt"] if "prompt" in row else row["text"]).strip()
        if shown:
            text = "\n".join([text, "", "These assertions have to hold:", *shown])
        return Question(text, code_meta(suite), fenced(program))
