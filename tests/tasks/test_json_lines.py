"""JSON Lines files: splits, reward functions of the user's, malformed files."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.task_makers import dump

from dlmrl_kit.scoring.pool import WorkerError
from dlmrl_kit.tasks.base import Example, split_of
from dlmrl_kit.tasks.json_lines import JsonLines
from dlmrl_kit.tasks.reasoning_gym import ReasoningGym
from dlmrl_kit.tasks.reward_function import check_reward_name
from dlmrl_kit.testing import check_component


def test_json_lines_splits_and_scores(functions: ModuleType, numbers_file: str) -> None:
    task = JsonLines(numbers_file, "kit_test_scorers:length", {"right": 0.8, "short": 0.2}, timeout=20)
    assert task.label() == "numbers"
    prompts = [f"{n}+{n}=" for n in range(50)]
    for split in task.SPLITS:
        mine = [task.example(split, index) for index in range(task.size(split))]
        assert [example.prompt for example in mine] == [p for p in prompts if split_of(p) == split]
        assert all(example.answer == str(2 * example.meta["n"]) for example in mine)
    example = task.example("train", 0)
    full = {"right": 1, "short": 1, "reward": 1, "solved": 1, "failed": 0}
    assert task.score(example.answer, example) == full
    assert task.score("12345", example) == {**full, "right": 0, "short": 0, "reward": 0, "solved": 0}
    assert task.score("1", example)["reward"] == pytest.approx(0.2)
    copied = pickle.loads(pickle.dumps(task))
    assert dump(copied) == dump(task)
    assert copied.score(example.answer, example) == full
    check_component(task)


def test_json_lines_bad_calls_are_zero_counted_and_warned_of_once(functions: ModuleType, numbers_file: str) -> None:
    task = JsonLines(numbers_file, "kit_test_scorers:length", {"right": 1}, timeout=1, workers=2)
    example = task.example("train", 0)
    bad = ["hang", "exit", "raise", "other", "not a number", "text"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = task.score_many([*bad, "large", example.answer], [example] * 8)
        assert task.score("raise", example)["failed"] == 1
    zero = {"right": 0, "short": 0, "reward": 0, "solved": 0, "failed": 1}
    assert scores[:6] == [zero] * 6
    assert scores[6] == {"right": 3, "short": -1, "reward": 3, "solved": 0, "failed": 0}
    assert scores[7]["solved"] == 1
    assert task.failures == Counter(error=5, timeout=1, crash=1)
    messages = sorted(str(warning.message) for warning in caught)
    assert len(messages) == 4
    assert any("exit code 5" in message for message in messages)
    assert any("RuntimeError: not scored" in message and "line" in message for message in messages)
    assert any("the reward 3 and no component 'solved': the accuracy is the share" in message for message in messages)


def test_json_lines_rewards_of_one_number(functions: ModuleType, numbers_file: str) -> None:
    task = JsonLines(numbers_file, "kit_test_scorers:exact", timeout=20)
    example = task.example("heldout", 0)
    assert task.score(example.answer, example) == {"reward": 1, "solved": 1, "failed": 0}
    assert task.score("", example) == {"reward": 0, "solved": 0, "failed": 0}
    half = JsonLines(numbers_file, "kit_test_scorers:Scores.half", timeout=20)
    assert half.score("", example) == {"reward": 0.5, "solved": 1, "failed": 0}


@pytest.mark.parametrize(
    ("reward", "weights", "message"),
    [
        ("kit_test_scorers:exakt", None, "no function 'exakt' in kit_test_scorers; did you mean 'exact'"),
        ("kit_test_scorers:Scores.whole", None, "no function 'whole' in kit_test_scorers.Scores; .*half"),
        ("kit_test_scorers:NUMBER", None, "kit_test_scorers:NUMBER is no function, but int 3"),
        ("kit_test_broken:f", None, "No module named 'kit_test_no_such_module'\n(.|\n)*kit_test_broken.py"),
        ("dlmrl_kit.scoring.arithmatic:f", None, "no module named 'dlmrl_kit.scoring.arithmatic'.*mean 'arithmetic'"),
        ("kit_test_scorers:first_word", None, "fails on an empty completion: IndexError.*\n(.|\n)*first_word"),
        ("kit_test_scorers:length", None, "no component 'reward' .return it, or set JsonLines.weights.*right, short"),
        ("kit_test_scorers:length", {"rigth": 1}, "no component 'rigth' .JsonLines.weights.*did you mean 'right'"),
        ("kit_test_scorers:work", None, "empty completion: TypeError: work.. takes 1 positional argument"),
    ],
)
def test_reward_functions_that_do_not_work_end_the_run(
    functions: ModuleType, numbers_file: str, reward: str, weights: Any, message: str
) -> None:
    task = JsonLines(numbers_file, reward, weights, timeout=20)
    with pytest.raises(WorkerError, match=message):
        task.score("1", task.example("train", 0))


def test_the_reward_module_is_imported_in_the_worker_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "imported"
    Path("kit_test_local.py").write_text(f"open({str(marker)!r}, 'a').write('x')\nreward = lambda text, example: 1\n")
    Path("one.jsonl").write_text('{"prompt": "a", "split": "train"}')
    task = JsonLines("one.jsonl", "kit_test_local:reward", timeout=20)  # found in the current folder
    assert not marker.exists()
    assert task.score("", task.example("train", 0))["reward"] == 1
    assert marker.read_text() == "x"
    assert "kit_test_local" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("length", "written 'module:function', got 'length'"),
        ("a:b:c", "written 'module:function'"),
        ("os.system('x'):f", "written 'module:function'"),
        (None, "written 'module:function', got None"),
        ("__main__:f", "main script"),
        ("kit_test_scorer:f", "no module named 'kit_test_scorer' .*did you mean 'kit_test_scorers'.*current folder"),
    ],
)
def test_names_of_reward_functions(functions: ModuleType, numbers_file: str, name: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_reward_name(name)
    with pytest.raises(ValueError, match=rf"JsonLines\.reward: .*{message}"):
        JsonLines(numbers_file, name)


GOOD = '{"prompt": "a", "answer": "b"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"data\.jsonl has no examples; write one JSON object"),
        (["", "  "], "has no examples"),
        ([GOOD, "{"], r"data\.jsonl:2: not JSON: .* at column 2"),
        ([GOOD, "", "[1]"], r":3: must be an object, got a list"),
        (["3"], r":1: must be an object, got a number"),
        (['{"promt": "a"}'], r":1: no field 'prompt'; did you mean 'promt'"),
        (["{}"], r":1: no field 'prompt'; it is empty"),
        (['{"prompt": " \\u200b\\u3000"}'], r":1: 'prompt' has no character that can be seen"),
        (['{"prompt": [{"role": "user", "content": ""}]}'], r":1: 'prompt' has no character that can be seen"),
        (['{"prompt": 1}'], r":1: 'prompt' must be a text, got a number"),
        (['{"prompt": ""}'], r":1: 'prompt' is empty"),
        (['{"prompt": "a", "split": "test"}'], r":1: no split 'test'; available: heldout, pretrain, train"),
        (['{"prompt": "a", "split": 1}'], r":1: no split 1"),
        ([GOOD, '{"prompt": "c", "split": "train"}'], r":2: either all lines have a 'split' or none"),
        (
            ['{"prompt": "a", "split": "train"}', GOOD.replace("}", ', "split": "heldout"}')],
            r":2: the prompt of line 1, which is in train, is in heldout here",
        ),
        (["[" * 100000], r":1: n"),
        ([b"\xff"], r":1: not UTF-8"),
        (['{"prompt": "\\ud800"}'], r":1: .*half of a surrogate pair"),
        (
            ['{"prompt": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}]}'],
            r":1: the conversation ends with the assistant's answer",
        ),
    ],
)
def test_json_lines_malformed_files(functions: ModuleType, tmp_path: Path, lines: list[Any], message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    with pytest.raises(ValueError, match=rf"JsonLines.path: .*{message}"):
        JsonLines(str(path), "kit_test_scorers:exact")


def test_json_lines_explicit_splits_and_duplicates(functions: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [{"prompt": f"p{n % 6}", "split": "heldout" if n % 6 == 5 else "train", "x": n} for n in range(12)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, lines)).encode())
    with pytest.warns(RuntimeWarning, match="for they ask what an earlier line asks: 6"):
        task = JsonLines(str(path), "kit_test_scorers:exact")
    assert [task.size(split) for split in task.SPLITS] == [0, 5, 1]
    assert task.example("heldout", 0) == Example("p5", "", {"x": 5})
    for index in (-1, 5):
        with pytest.raises(IndexError, match="has 5 examples"):
            task.example("train", index)
    with pytest.raises(ValueError, match=r"JsonLines\.split must be one of"):
        task.example("test", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "/no/such.jsonl"}, "JsonLines.path '/no/such.jsonl' cannot be read: No such file"),
        ({"path": "/"}, "cannot be read: Is a directory"),
        ({"path": "/dev/zero"}, "cannot be read: it is a device, pipe or socket"),
        ({"path": "a\0b"}, "JsonLines.path .* cannot be read: .*null"),
        ({"path": ""}, "JsonLines.path must be"),
        ({"weights": {"a": -1}}, r"JsonLines.weights\['a'\] must be a finite number"),
        ({"weights": {}}, "must be positive"),
        ({"weights": [1]}, "JsonLines.weights must be a dict"),
        ({"timeout": -1}, "JsonLines.timeout must be"),
        ({"workers": 1.5}, "JsonLines.workers must be"),
        ({"memory": 0.1}, "JsonLines.memory must be a number of GiB from 0.25 to 65536, or None, got 0.1"),
    ],
)
def test_json_lines_parameter_errors(
    functions: ModuleType, numbers_file: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        JsonLines(**{"path": numbers_file, "reward": "kit_test_scorers:exact", **arguments})


# ---------------------------------------------------------------- splits share no question

CHAT = [{"role": "user", "content": "caf\u00e9: 2 - 3 is?"}]
VARIANTS = {
    "blank at the end": "caf\u00e9: 2 - 3 is? ",
    "line break": "caf\u00e9: 2 - 3\nis?\n",
    "two blanks": "caf\u00e9:  2 - 3 is?",
    "no-break space": "caf\u00e9: 2\u00a0- 3 is?",
    "thin space": "caf\u00e9: 2\u2009- 3 is?",
    "decomposed": "cafe\u0301: 2 - 3 is?",
    "full width": "caf\u00e9: \uff12 - 3 is\uff1f",
    "zero width": "\ufeffcaf\u00e9: 2 - 3\u200b is?",
    "minus sign": "caf\u00e9: 2 \u2212 3 is?",
    "chat": CHAT,
    "chat with other white space": [{"role": "user", "content": " caf\u00e9: 2 - 3  is?"}],
    "chat, fields in another order": [{"content": "caf\u00e9: 2 - 3 is?", "role": "user"}],
}
OTHERS = [
    "caf\u00e9: 2 + 3 is?",
    "Caf\u00e9: 2 - 3 is?",
    "caf\u00e9: \u00b2 - 3 is?",
    "caf\u00e9: 2 - 3 is",
    "cafe: 2 - 3 is?",
]


def lines_file(folder: Path, *lines: dict[str, Any]) -> str:
    path = folder / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("form", VARIANTS)
def test_a_question_in_another_form_is_the_same_one(functions: ModuleType, tmp_path: Path, form: str) -> None:
    lines = [{"prompt": CHAT[0]["content"]}, {"prompt": VARIANTS[form]}, *({"prompt": other} for other in OTHERS)]
    with pytest.warns(RuntimeWarning, match=r"for they ask what an earlier line asks: 1 .line 2 as line 1.$"):
        task = JsonLines(lines_file(tmp_path, *lines), "kit_test_scorers:exact")
    assert sum(task.size(split) for split in task.SPLITS) == 1 + len(OTHERS)
    assert len(set().union(*(task.questions(split) for split in task.SPLITS))) == 1 + len(OTHERS)
    for line, split in zip(lines, ("train", "heldout", *["train"] * len(OTHERS)), strict=True):
        line["split"] = split
    with pytest.raises(ValueError, match=r":2: the prompt of line 1, which is in train, is in heldout here"):
        JsonLines(lines_file(tmp_path, *lines), "kit_test_scorers:exact")


def test_white_space_and_instructions_move_no_question_to_another_split(functions: ModuleType, tmp_path: Path) -> None:
    forms = [lambda q: q, lambda q: f"{q} ", lambda q: [{"role": "user", "content": q}]]
    forms += [lambda q, n=n: [{"role": "system", "content": n}, {"role": "user", "content": q}] for n in "ab"]
    lines = [{"prompt": form(f"What is {n} + 2?")} for n in range(100) for form in forms]
    with pytest.warns(RuntimeWarning, match="for they ask what an earlier line asks: 200"):
        task = JsonLines(lines_file(tmp_path, *lines), "kit_test_scorers:exact")
    sizes = {split: task.size(split) for split in task.SPLITS}
    assert sum(sizes.values()) == 300  # other instructions make another example of the same question
    questions = {split: task.questions(split) for split in task.SPLITS}
    assert all(3 * len(questions[split]) == sizes[split] > 0 for split in task.SPLITS)
    assert len(set().union(*questions.values())) == 100


@pytest.mark.parametrize(
    ("second", "contradicting"),
    [
        ({"answer": "3+4*5"}, False),
        ({"answer": " 3+4*5\n"}, False),
        ({"answer": "5*4+3"}, True),
        ({}, True),
        ({"answer": "3+4*5", "hint": "add"}, True),
    ],
)
def test_a_second_answer_to_a_prompt_is_counted_and_said(
    functions: ModuleType, tmp_path: Path, second: dict[str, str], contradicting: bool
) -> None:
    first = {"prompt": "Make 23", "answer": "3+4*5"}
    lines = [first, {"prompt": "Make 24"}, {"prompt": "Make 23", **second}, first]
    with pytest.warns(RuntimeWarning) as said:
        task = JsonLines(lines_file(tmp_path, *lines), "kit_test_scorers:exact")
    assert len(said) == 1
    assert "for they ask what an earlier line asks: 2 (line 3 as line 1)" in str(said[0].message)
    differing = "of these with another answer or other fields: 1 (line 3 than line 1)"
    assert (differing in str(said[0].message)) == contradicting
    answers = [task.example(split, index).answer for split in task.SPLITS for index in range(task.size(split))]
    assert sorted(answers) == ["", "3+4*5"]


# ---------------------------------------------------------------- rewards outside [0, 1]


@pytest.mark.parametrize("value", [3.5, -1.25, 0.5, 1.0, 1e300])
@pytest.mark.parametrize("form", ["number", "own", "weighted"])
def test_rewards_are_not_clipped(functions: ModuleType, numbers_file: str, value: float, form: str) -> None:
    weights = {"reward": 1.0, "solved": 0.0} if form == "weighted" else None
    name = "number" if form == "number" else "own"
    task = JsonLines(numbers_file, f"kit_test_scorers:valued_{name}", weights, timeout=20)
    example = task.example("train", 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = task.score_many([str(value), str(value)], [example] * 2)
    solved = 1.0 if name == "own" or value == 1 else 0.0
    assert scores == [{"reward": value, "solved": solved, "failed": 0.0}] * 2
    assert len(caught) == (name == "number" and not 0 <= value <= 1)


@pytest.mark.parametrize(("memory", "failed"), [(0.5, 1.0), (None, 0.0)])
def test_a_reward_function_has_a_limit_of_memory(
    functions: ModuleType, numbers_file: str, memory: float | None, failed: float
) -> None:
    if sys.platform != "linux":
        pytest.skip("no limit of address space")
    task = JsonLines(numbers_file, "kit_test_scorers:large", memory=memory, timeout=20)
    example = task.example("train", 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert task.score("1", example)["failed"] == failed
    said = ["it needs more than the worker's 0.5 GiB" in str(warning.message) for warning in caught]
    assert said == [True] * int(failed)
    assert task.score("0", example) == {"reward": 0, "solved": 0, "failed": 0}


def test_workers_have_a_limit_of_memory_by_default(functions: ModuleType, numbers_file: str) -> None:
    for task in (JsonLines(numbers_file, "kit_test_scorers:exact"), ReasoningGym("chain_sum")):
        _, memory = pickle.loads(task._pool()._setup)
        assert memory is not None
