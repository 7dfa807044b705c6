"""Tasks on published data: each format, splits, shared questions, prompts, rewards, and what a run depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.text_checkpoints import countdown_row, gsm8k_row, math_row, sudoku_row, write_csv, write_jsonl

from dlmrl_kit.core.errors import ParameterError, UserError
from dlmrl_kit.prompts.chat_prompt import ChatPrompt
from dlmrl_kit.prompts.plain_prompt import PlainPrompt
from dlmrl_kit.rewards.boxed_answer import BoxedAnswer
from dlmrl_kit.rewards.countdown_value import CountdownValue
from dlmrl_kit.rewards.integer_answer import IntegerAnswer
from dlmrl_kit.rewards.right_cells import RightCells
from dlmrl_kit.rewards.tag_count import TagCount
from dlmrl_kit.tasks.base import question_text
from dlmrl_kit.tasks.countdown_numbers import CountdownNumbers
from dlmrl_kit.tasks.gsm8k import GSM8K
from dlmrl_kit.tasks.math_problems import MATH
from dlmrl_kit.tasks.sudoku_puzzles import Sudoku4x4Puzzles
from dlmrl_kit.tasks.text_task import TextTask
from dlmrl_kit.testing.collect import checks_for

ROWS: dict[type[TextTask], Callable[[int], dict[str, Any]]] = {
    GSM8K: gsm8k_row,
    MATH: math_row,
    CountdownNumbers: countdown_row,
    Sudoku4x4Puzzles: sudoku_row,
}
every_task = pytest.mark.parametrize("cls", ROWS, ids=lambda cls: cls.__name__)


def made(cls: Any, folder: Path, train: int = 6, test: int = 3, **arguments: Any) -> Any:
    """A task on a training and a test file of its published format."""
    write = write_csv if cls is Sudoku4x4Puzzles else write_jsonl
    ending = "csv" if cls is Sudoku4x4Puzzles else "jsonl"
    paths = [folder / f"{name}.{ending}" for name in ("train", "test")]
    write(paths[0], [ROWS[cls](n) for n in range(1, train + 1)])
    write(paths[1], [ROWS[cls](n) for n in range(train + 1, train + test + 1)])
    return cls(**{"data": str(paths[0]), "test_data": str(paths[1]), **arguments})


@every_task
def test_the_published_splits_and_where_examples_are(cls: Any, tmp_path: Path) -> None:
    task = made(cls, tmp_path)
    assert [task.size(split) for split in task.SPLITS] == [0, 6, 3]
    assert (
        task.place("train", 1) == f"{tmp_path / 'train'}{task.files()[0].suffix}:{3 if cls is Sudoku4x4Puzzles else 2}"
    )
    assert set(task.files()) == set(tmp_path.iterdir())
    assert not task.questions("train") & task.questions("heldout")
    assert task.notes() == [f"data from {task.files()[0]} and {task.files()[1]}"]
    assert task.sketch() is task


@pytest.mark.thorough
@every_task
def test_tasks_conform(cls: Any, tmp_path: Path) -> None:
    task = made(cls, tmp_path)
    task.score("<answer>one</answer>", task.example("train", 0))  # starts the worker, if it has one
    for check in checks_for(task):
        if cls is not CountdownNumbers or check.name != "check_answer_scores_full":  # its data tell no expression
            check(task)


@every_task
def test_a_recipe_can_be_checked_without_data_and_tried_with_rows_of_the_kit(cls: Any, tmp_path: Path) -> None:
    task = cls() if cls is not Sudoku4x4Puzzles else cls(data="someone/puzzles")
    tried = task.sketch()
    assert tried is not task
    assert tried.size("train") == tried.size("heldout") == len(cls.sample) >= 3
    for index in range(3):
        example = tried.example("train", index)
        assert tried.score(example.answer, example)["solved"] == float(bool(example.answer))
        assert question_text(example.prompt)


@pytest.mark.parametrize(
    ("cls", "wanted", "answer", "reward"),
    [
        (GSM8K, {"truth": "1101"}, "1 + 2 = x.\n</reasoning>\n<answer>\n1101\n</answer>\n", 0.5 + 0.5 + 0.5 + 0.5 + 2),
        (MATH, {"truth": "\\frac{1}{2}"}, None, 1 + 2),
        (CountdownNumbers, {"numbers": [2, 3, 4], "target": 9}, "", 0),
        (Sudoku4x4Puzzles, {"puzzle": "0234341221434321", "solution": "1234341221434321"}, None, 1),
    ],
)
def test_rows_as_published(cls: Any, wanted: dict[str, Any], answer: str | None, reward: float, tmp_path: Path) -> None:
    task = made(cls, tmp_path)
    example = task.example("train", 0)
    assert {name: example.meta[name] for name in wanted} == wanted
    assert example.answer == answer or answer is None
    assert task.score(example.answer, example)["reward"] == pytest.approx(reward)


def test_the_published_countdown_test_file_and_other_counts_of_numbers(tmp_path: Path) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", [{"input": "30,100,93", "output": "23"}])
    rows = [countdown_row(1), {"nums": [1, 2, 3, 4], "target": 10}, {"nums": [4, 3, 2], "target": 9}]
    task = CountdownNumbers(write_jsonl(tmp_path / "train.jsonl", rows), test_data=test)
    assert task.example("heldout", 0).meta["numbers"] == [30, 100, 93]
    assert task.size("train") == 1
    assert task.notes()[1:] == ["1 rows of the training set repeat a question and are left out"]
    assert CountdownNumbers(str(tmp_path / "train.jsonl"), test_data=test, max_numbers=4).size("train") == 2


def test_shared_questions_are_counted_and_left_out(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [gsm8k_row(n) for n in (1, 2, 3, 2)])
    test = write_jsonl(tmp_path / "test.jsonl", [gsm8k_row(n) for n in (3, 4)])
    drop, keep = (GSM8K(train, test_data=test, shared=shared) for shared in ("drop", "keep"))
    assert (drop.size("train"), keep.size("train"), keep.size("heldout")) == (2, 3, 2)
    repeated = "1 rows of the training set repeat a question and are left out"
    both = "1 questions are in the training set and in the test set"
    assert drop.notes()[1:] == [repeated, f"{both}: they are left out of the training set"]
    assert keep.notes()[1:] == [repeated, f"{both}: they stay in both"]


def test_one_file_is_divided_and_sizes_are_limited(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "all.jsonl", [gsm8k_row(n) for n in range(20)])
    task = GSM8K(path, holdout=4, num_pretrain=5, num_train=7, num_heldout=3)
    assert [task.size(split) for split in task.SPLITS] == [5, 7, 3]
    places = [task.place(split, 0).rpartition(":")[2] for split in ("train", "pretrain", "heldout")]
    assert places == ["1", "12", "17"]
    assert GSM8K(path).size("heldout") == 10  # at most half
    with pytest.raises(UserError, match=r"num_pretrain = 20 leaves nothing of the 16 training examples"):
        GSM8K(path, holdout=4, num_pretrain=20).size("train")


@pytest.mark.parametrize(
    ("cls", "row", "message"),
    [
        (GSM8K, {"question": "?", "answer": "5"}, "'answer' does not end with #### and a number"),
        (GSM8K, {"question": "?"}, "there is no field 'answer'; it has 'question'"),
        (MATH, {"problem": "?", "solution": "5"}, r"neither an 'answer' nor a \\boxed\{\} in 'solution'"),
        (CountdownNumbers, {"nums": ["a"], "target": 1}, "invalid literal for int"),
        (CountdownNumbers, {"nums": [1, -2, 3], "target": 1}, "must not be negative"),
        (Sudoku4x4Puzzles, {"Puzzle": "1" * 15 + "5", "Solution": "1" * 16}, "no 4x4 puzzle with its solution"),
        (Sudoku4x4Puzzles, {"Puzzle": "2" * 16, "Solution": "1" * 16}, "changes what is given"),
    ],
)
def test_a_row_of_another_form_is_an_error_with_its_line(
    cls: Any, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [row])
    with pytest.raises(UserError, match=f"x.jsonl:1: .*{message}"):
        cls(path, test_data=path).size("train")


def test_rewards_are_added_up_or_averaged_and_named(tmp_path: Path) -> None:
    rewards = [IntegerAnswer(0.5), TagCount(-2.0, "tags"), IntegerAnswer(1.5, "again")]
    for combine, over in (("sum", 1), ("mean", None)):
        if over is None:
            with pytest.raises(ParameterError, match="sum of weights must be positive for a mean, got 0"):
                made(GSM8K, tmp_path, rewards=rewards, combine=combine)
            continue
        task = made(GSM8K, tmp_path, rewards=rewards, combine=combine)
        score = task.score("x\n</reasoning>\n<answer>\n1101\n</answer>\n", task.example("train", 0))
        assert score == {"integer_answer": 1, "tags": 0.5, "again": 1, "reward": 0.5 - 1.0 + 1.5, "solved": 1}
    task = made(GSM8K, tmp_path, rewards=[IntegerAnswer(3.0), TagCount(1.0)], combine="mean")
    assert task.score("</reasoning><answer>7</answer>", task.example("train", 0))["reward"] == (3 + 0.125) / 4
    with pytest.raises(ParameterError, match="two are called 'integer_answer'"):
        made(GSM8K, tmp_path, rewards=[IntegerAnswer(), IntegerAnswer()])
    with pytest.raises(UserError, match="RightCells reads 'puzzle' of an example, but those of GSM8K have truth"):
        made(GSM8K, tmp_path, rewards=[RightCells()]).size("train")


def test_rewards_see_the_prefix_and_accuracy_is_apart_from_the_reward(tmp_path: Path) -> None:
    task = made(Sudoku4x4Puzzles, tmp_path, prompt=ChatPrompt(prefix="<answer>"), train=3)
    example = task.example("train", 2)  # two cells are empty
    assert task.score("1134341221434321</answer>", example) == {"right_cells": 0.5, "reward": 0.5, "solved": 0}
    assert task.score("1234341221434321", example)["solved"] == 1
    boxed = made(MATH, tmp_path, rewards=[BoxedAnswer()])
    assert boxed.score("<answer>\\boxed{1}</answer>", boxed.example("train", 0)) == {
        "boxed_answer": 1,
        "reward": 1,
        "solved": 0,
    }


def test_lenient_countdown_is_an_option(tmp_path: Path) -> None:
    text = "so\n2+3+4 = 9"
    strict, lenient = (made(CountdownNumbers, tmp_path, rewards=[CountdownValue(lenient=how)]) for how in (False, True))
    assert strict.score(text, strict.example("train", 0))["solved"] == 0
    assert lenient.score(text, lenient.example("train", 0))["solved"] == 1


def test_prompts_of_training_and_test_are_the_same_unless_said_otherwise(tmp_path: Path) -> None:
    task = made(GSM8K, tmp_path, prompt=ChatPrompt(instruction="Go.", max_tokens=9))
    example = task.example("heldout", 0)
    assert example.prompt == [{"role": "user", "content": "Go.\n\nWhat are 7 and 8?"}]
    assert (example.prefix, example.most) == ("<reasoning>\n", 9)
    other = made(GSM8K, tmp_path, test_prompt=PlainPrompt(instruction="", prefix=""))
    assert other.example("heldout", 0).prompt == "What are 7 and 8?"
    assert other.example("train", 0).prompt == made(GSM8K, tmp_path).example("train", 0).prompt


def test_a_run_depends_on_the_wording(tmp_path: Path) -> None:
    found = made(GSM8K, tmp_path).versions()
    assert list(found) == ["GSM8K prompt"]
    assert made(GSM8K, tmp_path).versions() == found
    assert made(GSM8K, tmp_path, prompt=ChatPrompt(prefix="")).versions() != found
    assert made(GSM8K, tmp_path, prompt=ChatPrompt(instruction="Go.")).versions() != found
    assert len(made(GSM8K, tmp_path, test_prompt=ChatPrompt()).versions()) == 2
