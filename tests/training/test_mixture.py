"""A mixture of tasks trains; components that only one task has are averaged over its own samples."""

from __future__ import annotations

from pathlib import Path

from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import train

SETS = [
    "Algorithm.task = @Mixture()",
    "Mixture.tasks = [@Sudoku4x4(), @Countdown()]",
    "Countdown.num_train = 8",
    "Countdown.num_heldout = 4",
    "Sudoku4x4.num_train = 8",
    "Sudoku4x4.num_heldout = 4",
    "CharacterLlama.hidden_size = 16",
    "CharacterLlama.num_layers = 1",
    "CharacterLlama.num_heads = 2",
    "Trainer.updates = 2",
    "Trainer.prompts_per_update = 4",
    "Trainer.group_size = 2",
    "Trainer.eval_size = 8",
]


def test_a_mixture_trains(tmp_path: Path) -> None:
    result = train(load_recipe("egspo_sa", sets=SETS, uses=["policy=CharacterLlama"]), tmp_path / "run")
    assert {"Sudoku4x4/format", "Countdown/format"} <= set(result.after.components)
    assert all(0 <= value <= 1 for value in result.after.components.values())
