"""Trees of samples grown by a tiny policy."""

from __future__ import annotations

import torch
from dlmrl_kit.core.keys import SELECTED_END
from support.policies import tiny_policy
from support.rollouts import prompts
from support.seeds import seeded
from tensordict import TensorDict

from dlmrl_treerpo.tree import Tree
from dlmrl_treerpo.tree_levels import TreeLevels

LENGTH = 6
POLICY = tiny_policy(characters="abcd", initializer_range=0.25).to(torch.float64)


def batch(groups: list[int]) -> TensorDict:
    """A row for each entry; the prompt of a group is its own."""
    names = sorted(set(groups))
    source = prompts(POLICY, rows=len(names))
    index = torch.tensor([names.index(g) for g in groups])
    rows = source[index].clone()
    rows.set("group", torch.tensor(groups)).set("seed", torch.arange(len(groups)))
    return rows.set("progress", torch.full((len(groups),), 0.25, dtype=torch.float64))


def grow(sampler: Tree, groups: list[int], seed: int = 0, everything: bool = False) -> TensorDict:
    keys = sampler.optional_keys if everything else ()
    return sampler(seeded(batch(groups), seed), policy=POLICY, keys=keys)


def state(data: TensorDict, row: int, t: int) -> list[int]:
    """x_t of a row."""
    commit, final = data["commit_step"][row].tolist(), data["completion_ids"][row].tolist()
    return [POLICY.mask_id if c >= t else v for c, v in zip(commit, final, strict=True)]


FULL = [3] * 8 + [1] * 8
MIXED = [3, 1, 3, 3, 8, 1, 3, 3, 8, 3, 3, 3, 3, 3]
"""Interleaved; groups of 10, 2 and 2."""


def selection(data: TensorDict) -> TensorDict:
    return TreeLevels()(data, keys=[SELECTED_END])  # type: ignore[return-value]
