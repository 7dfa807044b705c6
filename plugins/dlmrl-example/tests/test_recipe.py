"""The shipped recipe: found, loaded, checked, and trained for two tiny updates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dlmrl_kit import load_recipe
from dlmrl_kit.recipe.catalogue import find
from dlmrl_kit.training import train

import dlmrl_example
import dlmrl_example.components  # registers, as the entry point does where the plugin is installed

TINY = [
    "CharacterLlama.hidden_size=16",
    "CharacterLlama.num_layers=1",
    *("Sudoku4x4.num_train=8", "Sudoku4x4.num_heldout=8", "Sudoku4x4.num_pretrain=8"),
    *("Trainer.updates=2", "Trainer.prompts_per_update=2", "Trainer.group_size=2", "Trainer.eval_size=4"),
]
"""Settings with which the recipe trains in a second, from random weights."""


def test_the_module_prints_the_path_of_the_recipe() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dlmrl_example"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(dlmrl_example.__file__).parents[1],
    )
    assert Path(result.stdout.strip()) == dlmrl_example.RECIPE
    assert dlmrl_example.RECIPE.is_file()


def test_the_components_are_registered_with_their_claims() -> None:
    for name, kind in {"StratifiedEntropy": "selector", "ShrunkLeaveOneOut": "advantage"}.items():
        component = find(name, kind)
        assert component.gin_name == f"dlmrl_example.{kind}.{name}"
        assert component.claims.unbiased
        assert component.summary


def test_the_recipe_trains(tmp_path: Path) -> None:
    recipe = load_recipe(dlmrl_example.RECIPE, uses=["policy=CharacterLlama", "logger=MetricsCSV"], sets=TINY)
    result = train(recipe, tmp_path / "run")
    assert result.updates == 2
    assert "StratifiedEntropy.k = 4" in (tmp_path / "run" / "recipe.gin").read_text()
