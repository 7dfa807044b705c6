"""What a run proposes next: commands that run, on the run's own task, and change what they say and nothing else."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from support.evaluations import evaluation
from support.pretraining import tiny
from support.runs import recipe

from dlmrl_kit.core.results import PretrainResult, RunResult
from dlmrl_kit.experiments.difference import compare
from dlmrl_kit.recipe.load import Recipe, load_recipe, recipe_names
from dlmrl_kit.report.next_commands import commands_after_pretraining, commands_after_training

SHIPPED = [name for name in recipe_names() if load_recipe(name).root == "Algorithm"]


def after_training(stored: Recipe, folder: Path) -> list[list[str]]:
    """The commands after a run of a recipe in ``folder``, as words."""
    (folder / "recipe.gin").write_text(stored.text())
    result = RunResult(folder, evaluation(0.1), evaluation(0.2), 1, 1.0, folder / "model")
    return [shlex.split(line, comments=True) for line in commands_after_training(result)]


def after_pretraining(stored: Recipe, folder: Path) -> list[list[str]]:
    (folder / "recipe.gin").write_text(stored.text())
    result = PretrainResult(folder, folder / "the model", 1, 1.0, 1.0, 0.1, 0.1, 0.1, "Task")
    return [shlex.split(line, comments=True) for line in commands_after_pretraining(result)]


def values(words: list[str], option: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == option]


def proposed(words: list[str]) -> Recipe:
    """The recipe that a proposed ``dlmrl train`` runs."""
    seeds = [f"Trainer.seed={seed}" for seed in values(words, "--seed")]
    return load_recipe(words[2], uses=values(words, "--use"), sets=[*values(words, "--set"), *seeds])


def texts(loaded: Recipe) -> dict[str, str | None]:
    return {key: bound.text for key, bound in loaded.bindings.items()}


@pytest.mark.parametrize(
    "name", [*SHIPPED[:8], *(pytest.param(name, marks=pytest.mark.thorough) for name in SHIPPED[8:])]
)
def test_after_training_one_thing_changes(name: str, tmp_path: Path) -> None:
    stored = load_recipe(name, sets=["Trainer.updates = 7", "Trainer.seed = 5"])
    commands = after_training(stored, tmp_path)
    trains = [words for words in commands if words[1] == "train"]
    assert commands[0][:3] == ["dlmrl", "eval", str(tmp_path)]
    assert trains
    for words in trains:
        found = proposed(words)
        found.build()
        if "--seed" in words:
            changed = {k for k, text in texts(found).items() if text != texts(stored)[k]}
            assert changed == {"Trainer.seed"}
        else:
            assert words[words.index("--use") + 1].startswith("selector=")
            difference = compare(stored, found, "selector")
            assert not difference.unwanted
            old, new = (
                {k.split(".")[1]: v for k, v in d.items()} for d in (difference.only_base, difference.only_variant)
            )
            assert new.get("k") == old.get("k", new.get("k"))
    shown = next(words[2] for words in commands if words[1] == "show")
    assert any(block.cls.__name__ == shown for block in stored.blocks)


def test_an_own_recipe_named_as_one_of_the_kit_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "egspo.gin"
    path.write_text(recipe("grpo_steps", uses=["task=Countdown"], sets=["Countdown.num_train = 8"]).text())
    (tmp_path / "a run").mkdir()
    for words in after_training(load_recipe(path), tmp_path / "a run"):
        if words[1] == "train":
            assert words[2] == str(tmp_path / "a run" / "recipe.gin")
            assert texts(proposed(words))["Algorithm.task"] == "@Countdown()"


def test_imports_are_allowed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "harmless_module.py").touch()
    stored = recipe()
    stored.imports = ("import harmless_module",)
    commands = after_training(stored, tmp_path)
    assert all("--allow-imports" in words for words in commands if words[1] in ("train", "eval"))


def test_a_recipe_that_is_lost_leaves_commands_that_need_none(tmp_path: Path) -> None:
    result = RunResult(tmp_path, evaluation(0.1), evaluation(0.2), 1, 1.0, tmp_path / "model")
    assert [line.split()[1] for line in commands_after_training(result)] == ["eval", "list"]
    (tmp_path / "metrics.csv").write_text("update,metric,value\n")  # of which figures are made
    assert [line.split()[1] for line in commands_after_training(result)] == ["eval", "plot", "list"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"sets": ["Sudoku4x4.max_empty = 6", "Sudoku4x4.num_heldout = 7", "LowConfidence.tokens_per_step = 4"]},
        {"sets": ["Sudoku4x4.min_empty = 1", "LowConfidence.completion_length = 20"]},
        {"uses": ["task=Countdown"], "sets": ["Countdown.num_heldout = 9", "LowConfidence.completion_length = 24"]},
        {"uses": ["task=Countdown", "sampler=EntropyOrder"], "sets": ["EntropyOrder.completion_length = 32"]},
        {
            "uses": ["task=Mixture"],
            "sets": [
                "Mixture.tasks = (@a/Sudoku4x4(), @Countdown())",
                "Mixture.weights = (1, 2)",
                "a/Sudoku4x4.max_empty = 5",
            ],
        },
    ],
    ids=["default", "settings", "lengths", "task", "task and sampler", "mixture"],
)
def test_after_pretraining_the_task_stays(given: dict[str, list[str]], tmp_path: Path) -> None:
    stored = load_recipe("pretrain_sudoku4x4", **given)
    evaluates, trains = after_pretraining(stored, tmp_path)
    assert evaluates == ["dlmrl", "eval", str(tmp_path / "the model")]
    found = proposed(trains)
    old, new = texts(stored), texts(found)
    assert new["Pretrained.path"] == repr(str(tmp_path / "the model"))
    assert (new["Algorithm.task"], new["Algorithm.sampler"]) == (old["Pretraining.task"], old["Pretraining.sampler"])
    for task in ("Sudoku4x4", "Countdown", "Mixture"):
        for key in (key for key in old if key.split("/")[-1].startswith(f"{task}.")):
            assert new[key] == old[key]
    sampler = str(new["Algorithm.sampler"]).strip("@()")
    bound = [key for key in old if f"{key} = {old[key]}" in given.get("sets", ())]
    for key in (*bound, f"{sampler}.completion_length"):
        assert new[key] == old[key]
    untouched = texts(load_recipe(found.name))
    assert {k: v for k, v in new.items() if k.startswith("Trainer.")} == {
        k: v for k, v in untouched.items() if k.startswith("Trainer.")
    }


def test_after_pretraining_on_what_no_training_can_name_there_is_no_command(tmp_path: Path) -> None:
    (tmp_path / "recipe.gin").write_text("not a recipe")
    result = PretrainResult(tmp_path, tmp_path / "model", 1, 1.0, 1.0, 0.1, 0.1, 0.1)
    assert commands_after_pretraining(result)[0].startswith(f"dlmrl eval {tmp_path / 'model'}")
    assert len(commands_after_pretraining(result)) == 1
    assert tiny().on_command_line == "pretrain_sudoku4x4"
