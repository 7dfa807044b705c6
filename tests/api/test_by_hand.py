"""``rollout`` gives the trajectories of an update, ``audit`` the report of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import build, collect, new_run

import dlmrl_kit as dk
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.rollout.services import training_indices

RECIPES = ["egspo_sa", "d1", "mdpo", "d2_stepmerge"]


@pytest.mark.parametrize("name", RECIPES)
def test_it_gives_the_trajectories_of_an_update(name: str, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", name)
    expected, sampled = collect(run).kept, run.algorithm
    indices = training_indices(7, 2, 0, sampled.trainer.seed)
    found = dk.rollout(build(name), policy=run.policy, indices=indices)
    assert len(found) == len(expected)
    assert set(found.keys(True, True)) == set(expected.keys(True, True))
    assert [found[key].dtype for key in found.keys(True, True)] == [
        expected[key].dtype for key in found.keys(True, True)
    ]


def test_the_same_seed_gives_the_same_and_another_one_others() -> None:
    one, same, other = (dk.rollout(build(), seed=seed)["completion_ids"] for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_prompts_of_ones_own_are_sampled_and_selected_but_not_rewarded() -> None:
    found = dk.rollout(build(), ["1234:", "12__:"], samples=2)
    assert found["group"].tolist() == [0, 0, 1, 1]
    keys = set(found.keys(True, True))
    assert {("selected", "step"), ("step", "entropy"), "completion_ids"} <= keys
    assert not {"reward", "example", ("selected", "advantage")} & keys


def test_one_prompt_needs_no_list() -> None:
    assert len(dk.rollout(build(), "1234:", samples=3)) == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompts": ["1:"], "indices": [0]}, "not both"),
        ({"indices": [7]}, "example 7 is not in the train split, which has 7"),
        ({"indices": [-1]}, "example -1 is not in the train split"),
        ({"indices": []}, "no examples of the train split"),
        ({"prompts": []}, "an empty list of prompts"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"policy": "shipped:sudoku4x4"}, "policy takes a loaded one .*, not a str"),
        ({"split": "tset"}, "unknown split 'tset'"),
        ({"prompts": ["äöü"]}, "no tokens for"),
    ],
)
def test_what_cannot_be_sampled_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        dk.rollout(build(), **given)


def test_an_algorithm_is_audited_as_its_recipe_is() -> None:
    options = {"problems": 1, "attribution": False}
    of_recipe = dk.audit("egspo_sa", **options)
    of_algorithm = dk.audit(dk.load_recipe("egspo_sa").build_algorithm(), **options)
    assert of_algorithm.verdict == of_recipe.verdict
