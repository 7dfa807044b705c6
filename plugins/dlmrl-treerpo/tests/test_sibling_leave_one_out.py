"""Sibling advantages against a recursion, and unbiased by enumeration of all trees."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from dlmrl_kit.audit import Problem
from dlmrl_kit.audit.bank import true_gradient
from dlmrl_kit.audit.enumeration import enumerate_trajectories
from dlmrl_kit.audit.policies import Parameters
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.selectors.all_steps import AllSteps
from tensordict import TensorDict
from torch import Tensor
from trees import FULL, LENGTH, MIXED, grow

from dlmrl_treerpo.nodes import TREE_NODE, TREE_STEP
from dlmrl_treerpo.sibling_leave_one_out import SiblingLeaveOneOut
from dlmrl_treerpo.tree import Tree


def slow_advantages(data: TensorDict) -> dict[tuple[Any, ...], float]:
    """A of every node (group, depth, number), by recursion over a tree of dictionaries."""
    height = data[TREE_NODE].shape[1]
    children: dict[Any, set[Any]] = {}
    leaves: dict[Any, list[float]] = {}
    for b in range(len(data)):
        path = [(int(data["group"][b]), d, int(data[TREE_NODE][b, d])) for d in range(height)]
        for above, node in zip([(int(data["group"][b]),), *path], path, strict=False):
            children.setdefault(above, set()).add(node)
        leaves.setdefault(path[-1], []).append(data["reward"][b].item())

    def value(node: Any) -> float:
        own = leaves.get(node) or [value(child) for child in children[node]]
        return sum(own) / len(own)

    found = {}
    for siblings in children.values():
        for node in siblings:
            others = [value(other) for other in siblings if other != node]
            found[node] = value(node) - (sum(others) / len(others) if others else 0.0)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups", [FULL, MIXED], ids=["full", "mixed"])
def test_sibling_leave_one_out_equals_the_recursion(groups: list[int], seed: int) -> None:
    sampler = Tree(LENGTH, temperature=2.0, height=3, branching=2)
    data = grow(sampler, groups, seed)
    data["reward"] = torch.rand(len(groups), generator=torch.Generator().manual_seed(seed)).double()
    AllSteps()(data)
    wanted = slow_advantages(data)
    found = SiblingLeaveOneOut()(data)["selected", "advantage"]
    for b, k in itertools.product(range(len(groups)), range(found.shape[1])):
        level = int(data["selected", "step"][b, k]) // 2
        node = (groups[b], level, int(data[TREE_NODE][b, level]))
        used = data["selected", "weight"][b, k] > 0
        assert found[b, k].item() == pytest.approx(wanted[node] if used else 0.0, abs=1e-9)


def test_equal_rewards_give_no_advantage() -> None:
    data = grow(Tree(LENGTH, height=2, branching=3), [0] * 9)
    data["reward"] = torch.full((9,), 0.1)
    found = SiblingLeaveOneOut()(AllSteps()(data))["selected", "advantage"]
    assert found.abs().max() < 1e-7


def trees(listed: TensorDict) -> tuple[TensorDict, Tensor]:
    """Every tree of height 2 with two children per node over trajectories of two steps, and its probability."""
    first: dict[Any, list[int]] = {}
    for i in range(len(listed)):
        commit, final = listed["commit_step"][i].tolist(), listed["completion_ids"][i].tolist()
        first.setdefault(tuple((c == 0) * (v + 1) for c, v in zip(commit, final, strict=True)), []).append(i)
    start = {name: listed["step", "log_prob"][rows[0], 0].exp().item() for name, rows in first.items()}
    rows, probability = [], []
    for pair in itertools.product(first, repeat=2):
        for leaves in itertools.product(*(first[name] for name in pair for _ in range(2))):
            rows.append(leaves)
            below = math.prod(listed["step", "log_prob"][i, 1].exp().item() for i in leaves)
            probability.append(start[pair[0]] * start[pair[1]] * below)
    index = torch.tensor(rows)
    data = listed[index.flatten()].clone()
    data["group"] = torch.arange(len(rows)).repeat_interleave(4)
    data[TREE_NODE] = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]]).repeat(len(rows), 1)
    data[TREE_STEP] = torch.tensor([[0, 1]]).repeat(4 * len(rows), 1)
    return data, torch.tensor(probability, dtype=torch.float64)


@pytest.mark.parametrize("problem", [Problem(length=2, seed=2), Problem(length=2, policy="network", seed=3)], ids=str)
def test_sibling_leave_one_out_is_unbiased(problem: Problem) -> None:
    """The exact expectation over all trees of the gradient of Reinforce on all steps is the gradient of J."""
    sampler, policy = LowConfidence(2, temperature=0.8), problem.denoiser
    listed = enumerate_trajectories(sampler, policy, problem.batch())
    listed["reward"] = problem.score(listed["completion_ids"], listed["example"])
    truth = true_gradient(listed, problem, sampler)
    data, probability = trees(listed)
    assert len(probability) >= 9 * 2**4
    assert probability.sum().item() == pytest.approx(1)
    data = SiblingLeaveOneOut()(AllSteps()(data))
    share = (probability * len(probability)).repeat_interleave(4)
    data = StepLogProb()(data, policy=policy, sampler=sampler)

    def gradient(weight: Tensor) -> Tensor:
        weighted = data.copy().set(("selected", "weight"), weight * share[:, None])
        return -Parameters(policy, sampler).gradient(Reinforce()(weighted)["loss_objective"], retain=True)

    found = gradient(data["selected", "weight"])
    assert (found - truth).norm() < 1e-10 * truth.norm()
    once = gradient(data["selected", "weight"] * torch.tensor([0.5, 1.0]))  # as TreeLevels weights transitions
    assert (once - truth).norm() > 1e-3 * truth.norm()
