"""Trees of samples: how they grow, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.trajectory import every_step
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.training.evaluation import evaluate
from support.policies import recorded_calls
from support.runs import build
from support.seeds import seeded
from trees import FULL, LENGTH, MIXED, POLICY, batch, grow, state

from dlmrl_treerpo.nodes import TREE_NODE, TREE_STEP
from dlmrl_treerpo.tree import Tree


@pytest.mark.parametrize("groups", [FULL, MIXED], ids=["full", "mixed"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (1, 4), (7, 2)], ids=str)
@pytest.mark.parametrize("stop_at_eos", [True, False])
def test_samples_share_what_their_nodes_share(groups: list[int], shape: tuple[int, int], stop_at_eos: bool) -> None:
    height, branching = shape
    sampler = Tree(LENGTH, temperature=1.5, stop_at_eos=stop_at_eos, height=height, branching=branching)
    data = grow(sampler, groups, everything=True)
    bounds = [level * LENGTH // height for level in range(height + 1)]
    assert data[TREE_STEP].tolist() == [bounds[:-1]] * len(groups)
    seen: dict[int, int] = {}
    for b, g in enumerate(groups):
        leaf = seen[g] = seen.get(g, -1) + 1
        assert data[TREE_NODE][b].tolist() == [leaf // branching ** (height - 1 - level) for level in range(height)]
    for b, c in itertools.combinations(range(len(groups)), 2):
        same_group = groups[b] == groups[c]
        shared = sum(same_group and data[TREE_NODE][b, d] == data[TREE_NODE][c, d] for d in range(height))
        until = bounds[shared]
        for t in range(until + 1):
            assert not same_group or state(data, b, t) == state(data, c, t)
        for name in ("log_prob", "entropy", "token_log_prob", "draft_ids", "greedy_ids", "num_committed", "valid"):
            if same_group:
                assert torch.equal(data["step", name][b, :until], data["step", name][c, :until])
    ends = {tuple(row) for row in data["completion_ids"].tolist()}
    assert len(ends) >= len(groups) // 2 or height > LENGTH  # children go on independently


def test_shared_steps_are_sampled_once() -> None:
    sampler = Tree(LENGTH, stop_at_eos=False, height=3, branching=2)
    with recorded_calls(POLICY) as calls:
        grow(sampler, FULL)
    assert [len(ids) for ids, _, _ in calls] == [4, 4, 8, 8, 16, 16]


def test_rows_that_end_early_are_grown_no_further() -> None:
    sampler = Tree(LENGTH, block_length=1, temperature=2.0, height=3, branching=2)
    data = grow(sampler, FULL, seed=1)
    steps = data["step", "valid"].sum(-1)
    assert steps.min() <= 2 < steps.max()
    for b in (steps <= 2).nonzero().flatten().tolist():
        family = [c for c in range(16) if FULL[c] == FULL[b] and data[TREE_NODE][c, 0] == data[TREE_NODE][b, 0]]
        assert len(family) == 4
        assert all(torch.equal(data["completion_ids"][b], data["completion_ids"][c]) for c in family)


def test_recorded_is_recomputed() -> None:
    sampler = Tree(LENGTH, 2, 4, temperature=1.4, top_k=3, height=2, branching=3)
    data = every_step(grow(sampler, MIXED, everything=True))
    with torch.no_grad():
        again = StepLogProb()(data, policy=POLICY, sampler=sampler)["selected", "log_prob"]
    valid = data["step", "valid"]
    assert (again - data["step", "log_prob"])[valid].abs().max() < 1e-9
    assert again[valid].min() < -0.1


def test_each_sample_alone_is_drawn_as_low_confidence_draws() -> None:
    """The same action log-probabilities and choices; one leaf per prompt is one sample, from the same noise."""
    tree, plain = Tree(LENGTH, 2, height=3, branching=2), LowConfidence(LENGTH, 2)
    rows = batch(list(range(6)))
    found = [s(seeded(rows, 5), policy=POLICY) for s in (tree, plain)]
    for key in plain.out_keys:
        assert torch.equal(found[0][key], found[1][key])


def test_evaluation_and_restarts_are_independent() -> None:
    """They take any number of samples, and nothing is shared."""
    algorithm = build("d_treerpo", ["Tree.branching = 2", "Trainer.group_size = 4"])
    policy = algorithm.policy.load()
    result = evaluate(policy, algorithm.sampler, algorithm.task, size=5, temperature=1.0, samples_per_prompt=3)
    assert result.size == 5
    assert set(result.pass_at_k) == {1, 2, 3}
    sampler = Tree(LENGTH, stop_at_eos=False)
    with recorded_calls(POLICY) as calls:
        found = sampler.decode(seeded(batch([0] * 4)), policy=POLICY)
    assert [len(ids) for ids, _, _ in calls] == [4] * LENGTH
    assert TREE_NODE not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 0}, "height must be at least 1, got 0"),
        ({"branching": 1}, "branching must be at least 2, got 1"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Tree.{message}"):
        Tree(6, 2, **arguments)


def test_recipes_need_whole_trees() -> None:
    with pytest.raises(RecipeError, match=r"Tree makes 16 samples.*group_size is 3; set Trainer\.group_size = 16"):
        build("d_treerpo", ["Tree.branching = 4", "Trainer.group_size = 3"])
    sets = ["Tree.branching = 4", "Trainer.group_size = 16", "Trainer.rollout_batch_size = 24"]
    with pytest.raises(RecipeError, match=r"rollout_batch_size = 24 would cut them apart; make it a multiple of 16"):
        build("d_treerpo", sets)
    build("d_treerpo", [*sets[:2], "Trainer.rollout_batch_size = 32"])
