"""The ``dlmrl`` command in this process, and bindings and options that make its runs tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from dlmrl_kit.cli.app import app

BINDINGS = (
    *("Sudoku4x4.num_train=8", "Sudoku4x4.num_heldout=4", "Sudoku4x4.cells_weight=0.7", "Trainer.updates=2"),
    *("Trainer.prompts_per_update=2", "Trainer.group_size=3", "Trainer.eval_every=0", "Trainer.eval_size=2"),
    "Trainer.traced_examples=0",
    *("Trainer.learning_rate=0.05", "Sampler.completion_length=16", "Selector.k=2"),
)


def train(folder: Path, recipe: str, *bindings: str, uses: tuple[str, ...] = ()) -> Any:
    arguments = ["train", recipe, "--out", str(folder)]
    arguments += [part for binding in bindings for part in ("--set", binding)]
    arguments += [part for use in uses for part in ("--use", use)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result


OPTIONS = [
    *(
        "--use",
        "policy=CharacterLlama",
        "--set",
        "CharacterLlama.hidden_size=16",
        "--set",
        "CharacterLlama.num_layers=1",
    ),
    *("--set", "Sudoku4x4.num_train=32", "--set", "Sudoku4x4.num_heldout=16", "--set", "Sudoku4x4.num_pretrain=32"),
    *("--set", "Trainer.updates=6", "--set", "Trainer.prompts_per_update=2", "--set", "Trainer.group_size=4"),
    *(
        "--set",
        "Trainer.eval_size=8",
        "--set",
        "Trainer.traced_examples=0",
        "--set",
        "Trainer.eval_every=2",
        "--set",
        "Trainer.checkpoint_every=2",
    ),
    *("--use", "logger=MetricsCSV"),
]
"""Options that make any training recipe of the kit run in about two seconds."""


def dlmrl(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)
