"""The plugin's keys of a trajectory: which node of its group's tree a sample is at, and where in it a step is."""

from __future__ import annotations

import torch
from dlmrl_kit import declare_key
from dlmrl_kit.core.keys import GROUP, STEP_VALID
from dlmrl_kit.core.trajectory import number_in_group, partition
from tensordict import TensorDictBase
from torch import Tensor


def _two_levels(trajectory: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Returns the keys of trees of height 2 with two children per node, as far as a group has samples."""
    number = number_in_group(trajectory[GROUP])
    first = torch.tensor([0, trajectory[STEP_VALID].shape[1] // 2], device=number.device)
    return torch.stack([number // 2, number], -1), first.expand(len(number), -1).clone()


TREE_NODE = declare_key(
    ("dlmrl_treerpo", "node"),
    "int64",
    "[B, D]",
    "a sample's node at depth 1 .. D of its group's tree",
    example=lambda trajectory: _two_levels(trajectory)[0],
)
TREE_STEP = declare_key(
    ("dlmrl_treerpo", "step"),
    "int64",
    "[B, D]",
    "first step of each level: the steps that lead to depth 1 .. D",
    example=lambda trajectory: _two_levels(trajectory)[1],
)


def tree_nodes(tensordict: TensorDictBase) -> Tensor:
    """Numbers the tree nodes of each depth so that nodes of different groups differ, too: int64 [B, D]."""
    group, node = tensordict[GROUP], tensordict[TREE_NODE]
    return torch.stack([partition(group, column) for column in node.unbind(-1)], -1)


def tree_level(tensordict: TensorDictBase, step: Tensor) -> Tensor:
    """Finds the level of the tree, 0 .. D - 1, that each step belongs to: int64 [B, K] from steps int64 [B, K]."""
    return (tensordict[TREE_STEP][:, None, :] <= step[:, :, None]).sum(-1) - 1
