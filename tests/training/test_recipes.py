"""Every recipe trains two tiny updates and resumes; in slow runs each improves on 4x4 Sudoku."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.kit_recipes import kit_recipes
from support.observers import Stop, StopAfterTheFirstUpdate
from support.runs import outcome, recipe

from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.runs import resume, train

RECIPES = kit_recipes()
SIZES: dict[str, list[str]] = {}
"""Bindings that fit the tiny sizes of the tests to a recipe."""


@pytest.mark.thorough
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_resumes(name: str, tmp_path: Path) -> None:
    small = recipe(name, sets=["Trainer.updates = 2", "Trainer.eval_every = 0", *SIZES.get(name, [])])
    train(small, tmp_path / "whole")
    with pytest.raises(Stop):
        train(small, tmp_path / "run", observer=StopAfterTheFirstUpdate())
    torch.manual_seed(99)
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "learned_unmasking"])  # it learns to be fast
def test_a_recipe_improves_on_sudoku(name: str, tmp_path: Path) -> None:
    sets = ["Trainer.updates = 30", "Trainer.eval_every = 0", "Trainer.eval_size = 400"]
    result = train(load_recipe(name, sets=sets, uses=["logger=none"]), tmp_path / "run")
    assert result.after.accuracy > result.before.accuracy + 0.03, (result.before.accuracy, result.after.accuracy)
