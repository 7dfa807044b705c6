"""A tiny recipe file, and its run in a process that lives to its end; three processes that talk to each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import trained_alone
from support.runs import recipe
from support.several import Pool

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


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Three processes in which cases run together."""
    made = Pool(tmp_path_factory.mktemp("several"))
    yield made
    made.close()
