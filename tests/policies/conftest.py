"""Checkpoints of families, made once for a file of tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.families import FAMILIES, Reference


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Reference]]:
    """Checkpoint folder and reference of a family, made once. The folder's name says nothing."""
    done: dict[str, tuple[Path, Reference]] = {}

    def get(family: str) -> tuple[Path, Reference]:
        if family not in done:
            folder = tmp_path_factory.mktemp("checkpoint")
            done[family] = (folder, FAMILIES[family](folder))
        return done[family]

    return get
