"""The page on the sandbox: its Python runs, its recipe loads, and its limits are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.paths import ROOT
from support.sandboxes import needs_bubblewrap

from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.rewards.unit_tests import UnitTests
from dlmrl_kit.sandbox.bubblewrap import INSTALL, TEMPORARY_BYTES
from dlmrl_kit.sandbox.code_tests import MAX_THREADS
from dlmrl_kit.sandbox.inside.limits import FILE_BYTES, OPEN_FILES
from dlmrl_kit.sandbox.inside.objects import BUDGET_BYTES, MESSAGE_BYTES

PAGE = (ROOT / "docs" / "sandbox.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@needs_bubblewrap
def test_its_python_runs() -> None:
    (text,) = blocks("python")
    exec(compile(text, "sandbox.md", "exec"), {})


def test_its_recipe_loads(tmp_path: Path) -> None:
    (text,) = blocks("gin")
    (tmp_path / "mine.gin").write_text(text)
    task = load_recipe(tmp_path / "mine.gin").build_algorithm().task
    (tests,) = [reward for reward in task.rewards if isinstance(reward, UnitTests)]  # type: ignore[attr-defined]
    assert (tests.timeout, tests.memory, tests.workers, tests.packages) == (5.0, 1.0, 2, ["numpy"])


@pytest.mark.parametrize(
    "said",
    [
        INSTALL,
        f"{TEMPORARY_BYTES >> 20} MiB in memory",
        f"{FILE_BYTES >> 20} MiB each, {TEMPORARY_BYTES >> 20} MiB together, {OPEN_FILES} open",
        f"{MESSAGE_BYTES >> 20} MiB each, {BUDGET_BYTES >> 20} MiB together",
        f"more than {MAX_THREADS} threads",
    ],
)
def test_its_limits_are_those_of_the_code(said: str) -> None:
    assert said in PAGE
