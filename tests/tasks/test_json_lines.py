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

from dlmrl_kit.tasks.base import Example, split_of
from dlmrl_kit.tasks.json_lines import JsonLines
from dlmrl_kit.tasks.reward_function import check_reward_name
from dlmrl_kit.tasks.reward_worker import WorkerError
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
    assert scores[6] == {"right": 1, "short": 0, "reward": 1, "solved": 1, "failed": 0}
    assert scores[7]["solved"] == 1
    assert task.failures == Counter(error=5, timeout=1, crash=1)
    messages = sorted(str(warning.message) for warning in caught)
    assert len(messages) == 4
    assert any("exit code 5" in message for message in messages)
    assert any("RuntimeError: not scored" in message and "line" in message for message in messages)
    assert any("returned right = 3; components are clipped" in message for message in messages)


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
        ("dlmrl_kit.tasks.arithmatic:f", None, "no module named 'dlmrl_kit.tasks.arithmatic'.*mean 'arithmetic'"),
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
        ([GOOD, "", "[1]"], r":3: a line must be an object with a 'prompt', got a list"),
        (["3"], r":1: a line must be an object with a 'prompt', got a number"),
        (['{"promt": "a"}'], r":1: no field 'prompt'; did you mean 'promt'"),
        (["{}"], r":1: no field 'prompt'; it is empty"),
        (['{"prompt": 1}'], r":1: 'prompt' must be a text, got a number"),
        (['{"prompt": ""}'], r":1: 'prompt' is empty"),
        (['{"prompt": "a", "answer": null}'], r":1: 'answer' must be a text, got null"),
        (['{"prompt": "a", "split": "test"}'], r":1: no split 'test'; available: heldout, pretrain, train"),
        (['{"prompt": "a", "split": 1}'], r":1: no split 1"),
        ([GOOD, '{"prompt": "c", "split": "train"}'], r":2: either all lines have a 'split' or none"),
        (
            ['{"prompt": "a", "split": "train"}', GOOD.replace("}", ', "split": "heldout"}')],
            r":2: the prompt of line 1, which is in train, is in heldout here",
        ),
        (["[" * 100000], r":1: n"),
        ([b"\xff"], r":1: not UTF-8"),
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
        ({"path": ""}, "JsonLines.path must be"),
        ({"weights": {"a": -1}}, r"JsonLines.weights\['a'\] must be a finite number"),
        ({"weights": {}}, "must be positive"),
        ({"weights": [1]}, "JsonLines.weights must be a dict"),
        ({"timeout": -1}, "JsonLines.timeout must be"),
        ({"workers": 1.5}, "JsonLines.workers must be"),
    ],
)
def test_json_lines_parameter_errors(
    functions: ModuleType, numbers_file: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        JsonLines(**{"path": numbers_file, "reward": "kit_test_scorers:exact", **arguments})
