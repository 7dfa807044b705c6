"""Mixtures of tasks: shares, sizes, scores, recipes."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.number_task import Numbers
from support.task_makers import SIZES, gym, mixture

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.tasks.base import BaseTask, Example, component_means
from dlmrl_kit.tasks.countdown import Countdown
from dlmrl_kit.tasks.json_lines import JsonLines
from dlmrl_kit.tasks.mixture import MixedExample, Mixture
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.testing import check_component

# ---------------------------------------------------------------- mixtures


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.2, 0.8], [1, 2, 4], [5, 0, 1]])
def test_every_beginning_of_a_mixture_has_its_shares(weights: list[float]) -> None:
    tasks = [Sudoku4x4(num_train=10), Countdown(num_train=10), Sudoku4x4(seed=1, num_train=10)][: len(weights)]
    task = Mixture(tasks, weights, num_train=200)
    names = list(task.tasks)
    counts: Counter[str] = Counter()
    for index in range(200):
        example = task.example("train", index)
        name = example.meta["task"]
        assert example.source == task.tasks[name].example("train", counts[name] % 10)
        counts[name] += 1
        for other, weight in zip(names, weights, strict=True):
            assert abs(counts[other] - weight / sum(weights) * (index + 1)) <= 1.01
    assert task.example("train", 7) == Mixture(tasks, weights, num_train=200).example("train", 7)


def test_sizes_of_a_mixture() -> None:
    tasks = [
        Sudoku4x4(num_pretrain=30, num_train=0, num_heldout=30),
        Countdown(num_pretrain=10, num_train=5, num_heldout=10),
    ]
    task = Mixture(tasks)
    # They alternate, Sudoku first: its example 30 is at position 58, Countdown's example 11 would be at 21.
    assert [task.size(split) for split in task.SPLITS] == [59, 5, 21]
    prompts = {s: [task.example(s, index).prompt for index in range(task.size(s))] for s in task.SPLITS}
    assert [len(set(prompts[split])) for split in task.SPLITS] == [40, 5, 21]
    assert {task.example("train", index).meta["task"] for index in range(5)} == {"Countdown"}
    assert Mixture(tasks, [3, 1]).size("pretrain") == 40  # every example once
    assert Mixture(tasks, num_heldout=7).size("heldout") == 7
    assert Mixture([Countdown(num_train=0)]).size("train") == 0
    with pytest.raises(IndexError, match="Mixture: split 'train' has 5 examples"):
        task.example("train", 5)
    with pytest.raises(ValueError, match=r"Mixture\.split must be one of"):
        task.size("test")


def test_a_mixture_scores_each_example_by_its_own_task() -> None:
    task = mixture()
    examples = [task.example("train", index) for index in range(6)]
    answers = [example.answer for example in examples]
    scores = task.score_many(answers, examples)
    assert scores == [task.score(answer, example) for answer, example in zip(answers, examples, strict=True)]
    own = {"Sudoku4x4": {"format", "cells", "solved", "reward"}, "Countdown": {"format", "solved", "reward"}}
    for example, score in zip(examples, scores, strict=True):
        name = example.meta["task"]
        assert set(score) == {"reward", "solved"} | {f"{name}/{component}" for component in own[name]}
        assert set(score.values()) == {1}
        plain = Example(example.prompt, example.answer, example.meta)
        assert task.score(example.answer, plain) == score
        assert task.canonical(example) == task.tasks[name].canonical(example.source)
    assert {example.meta["task"] for example in examples} == set(own)
    assert "numbers" in next(e for e in examples if e.meta["task"] == "Countdown").meta


def test_component_means_are_over_the_samples_that_have_a_component() -> None:
    scores = [
        {"reward": 1.0, "solved": 1.0, "a/x": 0.5},
        {"reward": 0.0, "solved": 0.0, "b/x": 0.25},
        {"reward": 0.5, "solved": 0.5, "a/x": 0.0},
    ]
    assert component_means(scores) == {"reward": 0.5, "solved": 0.5, "a/x": 0.25, "b/x": 0.25}
    assert component_means([]) == {}


def test_mixtures_of_everything(functions: ModuleType, numbers_file: str) -> None:
    file = JsonLines(numbers_file, "kit_test_scorers:exact", timeout=20)
    task = Mixture([gym("chain_sum"), file, mixture(), Sudoku4x4(seed=5, **SIZES), Sudoku4x4(**SIZES)])
    assert list(task.tasks) == ["chain_sum", "numbers", "Mixture", "Sudoku4x4", "Sudoku4x4_2"]
    examples = [task.example("heldout", index) for index in range(10)]
    scores = task.score_many([example.answer for example in examples], examples)
    assert [score["solved"] for score in scores] == [1] * 10
    assert {"chain_sum/failed", "numbers/reward", "Mixture/Sudoku4x4/cells"} <= set().union(*scores)
    copied = pickle.loads(pickle.dumps(task))
    assert [copied.example("heldout", index) for index in range(10)] == examples
    assert isinstance(examples[0], MixedExample)


def test_mixtures_conform() -> None:
    check_component(mixture())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": []}, "Mixture.tasks must be a list of tasks"),
        ({"tasks": Countdown()}, "Mixture.tasks must be a list of tasks"),
        ({"tasks": [Countdown]}, r"Mixture.tasks\[0\] must be a task, in a recipe @Name\(\) with brackets"),
        ({"tasks": [3]}, r"Mixture.tasks\[0\] must be a task"),
        ({"weights": [1]}, "Mixture.weights must be a list of 2 numbers"),
        ({"weights": 1}, "Mixture.weights must be a list of 2 numbers"),
        ({"weights": [1, -1]}, r"Mixture.weights\[1\] must be a finite number"),
        ({"weights": [0, 0]}, "must be positive"),
        ({"num_train": -1}, "Mixture.num_train must be an integer"),
        ({"tasks": [Countdown(num_train=0)], "num_train": 3}, "num_train must be 0: no task .* has examples in train"),
    ],
)
def test_mixture_parameter_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(**{"tasks": [Sudoku4x4(), Countdown()], **arguments})


def test_weights_that_are_far_apart_need_a_size() -> None:
    task = Mixture([Sudoku4x4(), Countdown()], [1, 1e-9])
    with pytest.raises(ValueError, match=r"Mixture\.num_train must be set"):
        task.size("train")
    assert Mixture([Sudoku4x4(), Countdown()], [1, 1e-9], num_train=100).size("train") == 100


# ---------------------------------------------------------------- recipes


def test_recipes_with_mixtures(functions: ModuleType, numbers_file: str, tmp_path: Path) -> None:
    sets = [
        "Algorithm.task = @Mixture()",
        "Mixture.tasks = [@easy/Sudoku4x4(), @Countdown(), @JsonLines(), @ReasoningGym()]",
        "Mixture.weights = [1, 2, 1, 1]",
        "easy/Sudoku4x4.max_empty = 6",
        f"JsonLines.path = {numbers_file!r}",
        "JsonLines.reward = 'kit_test_scorers:length'",
        "JsonLines.weights = {'right': 1.0}",
        "ReasoningGym.dataset = 'chain_sum'",
        "ReasoningGym.config = {'max_terms': 3}",
    ]
    loaded = load_recipe("egspo", sets=sets)
    task = loaded.build().task
    assert isinstance(task, Mixture)
    assert list(task.tasks) == ["Sudoku4x4", "Countdown", "numbers", "chain_sum"]
    assert task.tasks["Sudoku4x4"].max_empty == 6
    assert task.weights["Countdown"] == 2
    path = tmp_path / "resolved.gin"
    path.write_text(loaded.text())
    assert load_recipe(path).text(header=False) == loaded.text(header=False)
    with pytest.raises(RecipeError, match=r"ReasoningGym.dataset.*'countdown' is refused"):
        load_recipe("egspo", sets=[*sets, "ReasoningGym.dataset = 'countdown'"]).build()
    with pytest.raises(RecipeError, match=r"ReasoningGym.dataset .* is required"):
        load_recipe("egspo", uses=["task=ReasoningGym"])


# ---------------------------------------------------------------- splits share no question, across tasks


def file_task(folder: Path, name: str, *lines: dict[str, Any]) -> JsonLines:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return JsonLines(str(path), "kit_test_scorers:exact", timeout=20)


@pytest.mark.parametrize("form", ["2+3?", " 2+3?\n", "\uff12+3?", [{"role": "user", "content": "2+3?"}]])
@pytest.mark.parametrize("nested", [False, True])
def test_two_files_share_no_question_between_splits(
    functions: ModuleType, tmp_path: Path, form: Any, nested: bool
) -> None:
    one = file_task(tmp_path, "one", {"prompt": "2+3?", "split": "train"}, {"prompt": "1+1?", "split": "heldout"})
    two = file_task(tmp_path, "two", {"prompt": form, "split": "heldout"}, {"prompt": "0+0?", "split": "train"})
    other: BaseTask = Mixture([two]) if nested else two
    name = "Mixture" if nested else "two"
    both = rf"'2\+3\?' is in train of 'one' and in heldout of '{name}'"
    with pytest.raises(ValueError, match=f"Mixture.tasks share questions between splits, 1 of them; {both}"):
        Mixture([one, other])
    assert Mixture([one, other], [1, 0]).size("train") == 1  # a task without weight takes no part
    same = file_task(tmp_path, "same", {"prompt": form, "split": "train"})
    assert Mixture([one, same]).questions("train") == {"2+3?"}


def test_files_without_splits_share_no_question(functions: ModuleType, tmp_path: Path) -> None:
    one = file_task(tmp_path, "one", *({"prompt": f"{n}+1?"} for n in range(50)))
    two = file_task(tmp_path, "two", *({"prompt": f" {n}+1?\n"} for n in range(50)))
    assert Mixture([one, two]).questions("train") == one.questions("train")


@pytest.mark.parametrize("first", ["train", "heldout"])
def test_a_made_example_is_compared_with_what_files_list(functions: ModuleType, tmp_path: Path, first: str) -> None:
    made = Sudoku4x4(**SIZES)
    other = "heldout" if first == "train" else "train"
    lines = [{"prompt": f"{made.example(first, index).prompt} ", "split": other} for index in range(3)]
    task = Mixture([made, file_task(tmp_path, "file", *lines)])
    with pytest.raises(ValueError, match=f"a question is in {other} of 'file' and in {first} of 'Sudoku4x4': '"):
        task.example(first, 0)


def test_made_examples_of_two_tasks_are_compared() -> None:
    class Odd(Numbers):
        """Its splits are its own affair, and those of another size are not the same."""

        def __init__(self, split: str) -> None:
            super().__init__(3)
            self._sizes = {name: 3 if name == split else 0 for name in self.SPLITS}

    task = Mixture([Odd("train"), Odd("heldout")])
    assert task.example("heldout", 1).prompt == "11"
    task.example("train", 0)
    with pytest.raises(ValueError, match="a question is in heldout of 'Odd_2' and in train of 'Odd': '11'"):
        task.example("train", 1)


def test_sizes_of_a_mixture_of_endless_tasks_must_be_set() -> None:
    task = Mixture([Sudoku4x4(num_train=10**9, num_heldout=10**9), Countdown(num_train=10**9, num_heldout=10**9)])
    for split in ("train", "heldout"):
        with pytest.raises(ValueError, match=rf"Mixture\.num_{split} must be set"):
            task.size(split)
