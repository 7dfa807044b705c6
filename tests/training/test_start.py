"""Runs that cannot start: devices, checkpoints, too few examples, folders of something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import recipe

from dlmrl_kit.core.errors import CheckpointError, RecipeError, UserError
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import resume, train
from dlmrl_kit.training.start import find_device, start_training


def test_devices_that_are_not_there_are_named() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda")
    with pytest.raises(RecipeError, match=r"device = 'cqu' cannot be used here"):
        find_device("cqu")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["Pretrained.path = 'shipped:nothing'"], r"no checkpoint 'shipped:nothing' ships with dlmrl_kit; available: "),
        (["Pretrained.path = '/nowhere/at/all'"], r"cannot load a denoiser from /nowhere/at/all"),
        (["Trainer.device = 'cqu'"], "device = 'cqu' cannot be used here"),
        (["Sudoku4x4.num_train = 0"], "Sudoku4x4: the train split is empty; set num_train"),
        (["Sudoku4x4.num_heldout = 0"], "Sudoku4x4: the heldout split is empty; set num_heldout"),
    ],
)
def test_runs_that_cannot_start_leave_no_folder(sets: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(recipe(sets=sets), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_too_few_examples_are_the_users_to_fix(tmp_path: Path) -> None:
    sets = [
        "Countdown.num_train = 100",
        "Countdown.max_value = 2",
        "Countdown.min_target = 1",
        "Countdown.max_target = 4",
    ]
    few = recipe("egspo", uses=["task=Countdown", "policy=CharacterLlama"], sets=sets)
    with pytest.raises(RecipeError, match=r"Countdown: num_(train|heldout) is \d+, but only \d+ distinct examples"):
        train(few, tmp_path / "run")


def test_folders_and_recipes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.gin").write_text(recipe().text())
    with pytest.raises(CheckpointError, match=f"{folder} already holds a run: resume it with"):
        train(recipe(), folder)
    with pytest.raises(RecipeError, match="is a recipe for Pretraining, not for training: run 'dlmrl pretrain pre"):
        train(load_recipe("pretrain_sudoku4x4"), tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds no run"):
        resume(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["dcolt", "tracerl_value"])
def test_components_with_modules_belong_to_one_run(name: str) -> None:
    """Two runs would train the same parameters; settings alone may be shared."""
    algorithm = recipe(name).build_algorithm()
    start_training(algorithm)
    with pytest.raises(RecipeError, match="holds modules that another run trains; give this run one of its own"):
        start_training(algorithm)
    shared = recipe("egspo_sa").build_algorithm()
    start_training(shared)
    start_training(shared)
