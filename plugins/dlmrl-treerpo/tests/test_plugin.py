"""What the kit does with the plugin: conformance, the recipe by its name, the tables of algorithms, audit and guard."""

from __future__ import annotations

import pytest
import torch
from dlmrl_kit.audit import Problem, audit_algorithm, exact_estimator
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.testing import parametrize_with_checks
from dlmrl_kit.training.identical_groups import identical_groups
from support.plugin_pages import assert_in_tables_of_algorithms
from support.runs import collect, new_run
from trees import FULL, LENGTH, MIXED, grow

from dlmrl_treerpo.components import SelfDistillation, SiblingLeaveOneOut, Tree, TreeLevels
from dlmrl_treerpo.nodes import TREE_NODE, TREE_STEP, tree_level

COMPONENTS = [Tree(6, 2), Tree(7, height=3, branching=3), TreeLevels(), SiblingLeaveOneOut(), SelfDistillation()]
UNLISTED = {"SiblingLeaveOneOut-check_claim": "needs a Tree, whose samples are not listed one by one"}


@parametrize_with_checks(COMPONENTS, expected_failures=UNLISTED)
def test_conformance(component, check):
    check(component)


def test_the_recipe_is_found_by_its_name():
    recipe = load_recipe("d_treerpo")
    assert type(recipe.build_algorithm().sampler) is Tree
    assert recipe.on_command_line == "d_treerpo"


def test_the_tables_of_algorithms_have_its_rows():
    assert_in_tables_of_algorithms("d_treerpo")


def test_the_level_of_a_step():
    data = grow(Tree(7, height=4, branching=2), [0])
    data[TREE_STEP] = torch.tensor([[0, 2, 2, 5]])
    assert tree_level(data, torch.arange(7)[None]).tolist() == [[0, 0, 2, 2, 2, 3, 3]]


@pytest.mark.parametrize("groups", [FULL, MIXED], ids=["full", "mixed"])
@pytest.mark.parametrize("height", [1, 3])
def test_samples_part_where_a_leaf_leaves_its_parent(groups, height):
    sampler = Tree(LENGTH, height=height, branching=2)
    data = grow(sampler, groups)
    step, state = sampler.last_fork(data)
    assert step.tolist() == [(height - 1) * LENGTH // height] * len(groups)
    parents = [(g, *data[TREE_NODE][b, : height - 1].tolist()[-1:]) for b, g in enumerate(groups)]
    for b, c in zip(*torch.triu_indices(len(groups), len(groups), 1).tolist(), strict=True):
        assert (parents[b] == parents[c]) == (state[b] == state[c]).item()


def test_the_audit_samples_groups_and_takes_siblings_as_the_baseline():
    estimator = exact_estimator(Tree(4, height=2, branching=2))
    assert type(estimator.advantage) is SiblingLeaveOneOut
    problem = Problem(vocab=2, length=3, seed=5)
    report = audit_algorithm(estimator, problems=[problem], group_size=4, attribution=False)
    assert not report.exact
    assert any("'node'" in note for note in report.notes)
    (measured,) = report.measured
    assert measured.interval is not None
    assert measured.interval[0] < 0.02  # nothing to be seen of a bias


@pytest.mark.parametrize("height", [1, 2])
def test_identical_leaves_of_a_node_are_noticed(height, tmp_path):
    sets = ["Sampler.tokens_per_step = 1", f"Tree.height = {height}", "Tree.branching = 4"]
    leaves = 4**height
    run = new_run(tmp_path, uses=["sampler=Tree"], sets=[*sets, f"Trainer.group_size = {leaves}"])
    trajectory = collect(run).everything
    run.update.guard.check(trajectory, 0, whole=True)
    assert identical_groups(trajectory, run.policy, run.algorithm.sampler, 8) == ""
    first = trajectory["group"] * leaves
    same = trajectory[first].update(trajectory.select("seed", "group", "dlmrl_treerpo"))
    with pytest.raises(TrainingError, match="all samples of a group are identical in 2 of 2 groups"):
        run.update.guard.check(same, 0, whole=True)
