"""A tiny recipe file, and its run in a process that lives to its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes import trained_alone
from support.runs import recipe

SETS = [
    "Trainer.updates = 5",
    "Trainer.checkpoint_every = 2",
    "Trainer.schedule = 'cosine'",
    "Trainer.warmup_steps = 3",
]


@pytest.fixture(scope="session")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.gin"
    path.write_text(recipe(sets=SETS).text())
    return path


@pytest.fixture(scope="session")
def whole(gin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of that recipe, in a process that lives to its end."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trained_alone(gin_file, folder)
    return folder
