"""The segments of a tree, against loops."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from dlmrl_kit.likelihoods.step_merge import StepMerge
from trees import LENGTH, MIXED, POLICY, grow, selection, state

from dlmrl_treerpo.nodes import TREE_NODE
from dlmrl_treerpo.tree import Tree


@pytest.mark.parametrize("seed", range(3))
def test_tree_levels_equal_the_loop(seed: int) -> None:
    sampler = Tree(LENGTH, block_length=1, temperature=2.0, height=3, branching=2)
    data = selection(grow(sampler, MIXED, seed))
    bounds, n = [0, 2, 4, 6], data["step", "valid"].sum(-1).tolist()
    total: dict[Any, float] = {}
    for b, g in enumerate(MIXED):
        segments = [(bounds[d], min(bounds[d + 1], n[b])) for d in range(3) if bounds[d] < n[b]]
        pad = data["selected", "step"].shape[1] - len(segments)
        assert data["selected", "step"][b].tolist() == [start for start, _ in segments] + [0] * pad
        assert data["selected", "end"][b, : len(segments)].tolist() == [end for _, end in segments]
        for d in range(len(segments)):
            below = [c for c in range(len(MIXED)) if MIXED[c] == g and data[TREE_NODE][c, d] == data[TREE_NODE][b, d]]
            assert data["selected", "weight"][b, d].item() == pytest.approx(1 / len(below))
            name = (g, d, int(data[TREE_NODE][b, d]))
            total[name] = total.get(name, 0.0) + data["selected", "weight"][b, d].item()
        assert not data["selected", "weight"][b, len(segments) :].any()
    assert all(weight == pytest.approx(1) for weight in total.values())  # each transition counts once
    assert min(n) < 5


def test_the_tokens_of_a_transition_are_those_that_changed() -> None:
    sampler = Tree(LENGTH, temperature=2.0, stop_at_eos=False, height=2, branching=2)
    data = selection(grow(sampler, [0] * 4 + [1] * 4, seed=1))
    likelihood = StepMerge(after_eos=True)
    keys = likelihood.optional_keys
    likelihood.prepare(data, sampler=sampler, policy=POLICY, keys=keys)
    found = likelihood(data, policy=POLICY, sampler=sampler, keys=keys)["selected"]
    for b, k in itertools.product(range(8), range(2)):
        parent, child = state(data, b, 3 * k), state(data, b, 3 * (k + 1))
        assert found["token_mask"][b, k].tolist() == [p != c for p, c in zip(parent, child, strict=True)]
        assert found["token_mask"][b, k].sum() == 3
    first = found["token_log_prob"][:, 0]
    assert torch.equal(first[0], first[1])  # the same transition, scored the same for both of its leaves
    assert torch.equal(first[2], first[3])
    assert not torch.equal(first[0], first[2])
