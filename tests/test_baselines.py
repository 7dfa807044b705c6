"""Every recipe: short, trains two tiny updates, resumes; in slow runs each improves on 4x4 Sudoku."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_helpers import outcome, recipe

from dlmrl_kit.core.results import Observer
from dlmrl_kit.experiments.algorithms import component_table, training_recipes
from dlmrl_kit.experiments.forwards import Forwards, count_forwards
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.loop import resume, train

ROOT = Path(__file__).resolve().parents[1]
RECIPES = training_recipes()
MAX_LINES = 32
SIZES: dict[str, list[str]] = {}
"""Bindings that fit the tiny sizes of the tests to a recipe."""


class Stop(Exception):
    pass


class StopAfterTheFirstUpdate(Observer):
    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        if update == 1:
            raise Stop


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_what_it_is(name: str) -> None:
    lines = (ROOT / "recipes" / f"{name}.gin").read_text().splitlines()
    body = [line for line in lines if line and not line.startswith("#")]
    assert len(body) <= MAX_LINES
    assert lines[0].startswith("# ")
    if name != "reinforce_exact":
        assert "arXiv" in "\n".join(line for line in lines if line.startswith("#"))


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
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_improves_on_sudoku(name: str, tmp_path: Path) -> None:
    sets = ["Trainer.updates = 30", "Trainer.eval_every = 0", "Trainer.eval_size = 400"]
    result = train(load_recipe(name, sets=sets, uses=["logger=none"]), tmp_path / "run")
    assert result.after.accuracy > result.before.accuracy + 0.03, (result.before.accuracy, result.after.accuracy)


def test_the_table_of_components_is_current() -> None:
    page = ROOT / "docs" / "algorithms.md"
    assert component_table(RECIPES, page) in page.read_text()


def test_every_recipe_has_a_row_in_the_table_of_audits() -> None:
    table = (ROOT / "docs" / "algorithms.md").read_text().partition("<!-- audit -->")[2].partition("<!-- end -->")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines()[3:] if line.startswith("|")] == RECIPES


def test_forwards_are_counted() -> None:
    assert count_forwards("d1") == Forwards(rollout=8, update=6)  # old and reference once, for each of two passes
