"""Own data without conversion: names of fields, templates, splits of other names, answers of any type, every format."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.text_checkpoints import write_csv, write_jsonl

from dlmrl_kit.core.errors import ParameterError, UserError
from dlmrl_kit.prompts.plain_prompt import PlainPrompt
from dlmrl_kit.tasks.fields import as_text, filled
from dlmrl_kit.tasks.json_lines import JsonLines
from dlmrl_kit.tasks.questions import Questions

EXACT = "kit_test_scorers:exact"


def test_templates_take_fields_as_they_are() -> None:
    row = {"a": "x{b}", "b": [1, "é"], "c d": None}
    assert filled("{a} and {b}{c d}: {{a}}", row) == 'x{b} and [1, "é"]: {a}'
    assert [as_text(value) for value in (True, 0.5, {"k": None}, "07")] == ["true", "0.5", '{"k": null}', "07"]
    with pytest.raises(ValueError, match="the template needs the field 'bb'; did you mean 'b'"):
        filled("{bb}", row)


def test_json_lines_with_other_names_splits_and_answers_of_any_type(functions: ModuleType, tmp_path: Path) -> None:
    answers: list[Any] = ["07", 7, [1, "a"], {"x": True}, None]
    homes = ["dev", "train", "train", "train", "old"]
    rows = [{"q": f"q{n}", "gold": a, "part": home} for n, (a, home) in enumerate(zip(answers, homes, strict=True))]
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    names = {"prompt_field": "q", "answer_field": "gold", "split_field": "part"}
    splits = {"dev": "heldout", "train": "train", "old": None}
    task = JsonLines(path, EXACT, splits=splits, **names)
    assert [task.size(split) for split in task.SPLITS] == [0, 3, 1]
    assert (task.example("heldout", 0).prompt, task.example("heldout", 0).answer) == ("q0", "07")
    assert [task.example("train", n).answer for n in range(3)] == ["7", '[1, "a"]', '{"x": true}']
    assert [task.example("train", n).meta for n in range(3)] == [{"gold": 7}, {"gold": [1, "a"]}, {"gold": {"x": True}}]
    assert task.place("train", 0) == f"{path}:2"
    with pytest.raises(ParameterError, match=r"own.jsonl:1: no split 'dev'; available: train"):
        JsonLines(path, EXACT, splits={"train": "train"}, **names)
    with pytest.raises(ParameterError, match=r"own.jsonl:1: no field 'prompt'; .*available: gold, part, q"):
        JsonLines(path, EXACT)
    with pytest.raises(ParameterError, match=r"own.jsonl:1: no field 'god'; did you mean 'gold'"):
        JsonLines(path, EXACT, prompt_field="q", answer_field="god", split_field="part", splits=splits)


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "txt"])
def test_json_lines_reads_other_formats_with_a_template(functions: ModuleType, ending: str, tmp_path: Path) -> None:
    rows = [{"a": str(n), "b": str(n + 1), "answer": str(2 * n + 1)} for n in range(30)]
    path = tmp_path / f"own.{ending}"
    if ending == "csv":
        write_csv(path, rows)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    task = JsonLines(str(path), EXACT, template="{a}+{b}=")
    found = {task.example(s, n).prompt: task.example(s, n) for s in task.SPLITS for n in range(task.size(s))}
    assert set(found) == {f"{n}+{n + 1}=" for n in range(30)}
    assert found["3+4="].answer == "7"
    assert found["3+4="].meta == {"a": "3", "b": "4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_field": ""}, "prompt_field must be the name of a field"),
        ({"template": "no fields"}, r"template must be a text with \{field\} in it"),
        ({"template": "{q} {answer}"}, r"template must be without \{answer\}, which would show the answer"),
        (
            {"splits": {"a": "test"}},
            "splits must be a dict from values of the field to pretrain, train, heldout or None",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(functions: ModuleType, arguments: Any, message: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", [{"prompt": "1", "q": "1"}])
    with pytest.raises(ParameterError, match=rf"JsonLines\.{message}"):
        JsonLines(path, EXACT, **arguments)


def test_questions_of_ones_own(tmp_path: Path) -> None:
    rows = [{"left": n, "right": 1, "total": n + 1, "how": f"count {n}"} for n in range(10)]
    path = write_jsonl(tmp_path / "sums.jsonl", rows)
    fields = {"template": "{left}+{right}=", "answer_field": "total", "reasoning_field": "how", "holdout": 2}
    task = Questions(path, **fields)
    example = task.example("train", 3)
    assert example.meta | {"question": ""} == {**rows[3], "truth": "4", "question": ""}
    assert example.answer == "count 3\n</reasoning>\n<answer>\n4\n</answer>\n"
    assert task.score(example.answer, example) == {"correct_answer": 1, "tag_count": 0.5, "reward": 1.5, "solved": 1}
    bare = Questions(path, tags=False, prompt=PlainPrompt(prefix=""), **fields)
    example = bare.example("heldout", 0)
    assert (example.prompt, example.answer, example.prefix) == ("8+1=", "9", "")
    assert bare.score(" 9", example) == {"correct_answer": 1, "reward": 1, "solved": 1}
    assert bare.sketch() is bare
    with pytest.raises(UserError, match=r"sums.jsonl:1: no field 'question'; available: how, left, right, total"):
        Questions(path, answer_field="total").size("train")
    write_jsonl(tmp_path / "sums.jsonl", [{"question": "?", "none": None}])
    with pytest.raises(UserError, match=r"sums.jsonl:1: no answer in 'none'"):
        Questions(path, answer_field="none").size("train")
