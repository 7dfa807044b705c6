"""Who belongs together in a batch: members of a group, and nodes of a tree with the group's prompt at its root.

A tree of height D has the samples of a group as its leaves. ``("tree", "node")`` numbers the node of each sample at
depth 1 .. D; nodes of different depths or groups may have the same number. ``("tree", "step")`` is the first of the
denoising steps that lead to each depth.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import GROUP, TREE_NODE, TREE_STEP


def partition(*ids: Tensor) -> Tensor:
    """A number 0 .. N - 1 for each of N distinct combinations of ids: int64 [B] from int64 [B] each."""
    return torch.unique(torch.stack(ids, -1), dim=0, return_inverse=True)[1]


def first_rows(index: Tensor) -> Tensor:
    """The first row of each number of a partition: int64 [N] from int64 [B]."""
    rows = torch.arange(len(index), device=index.device)
    none = torch.full((int(index.max()) + 1,), len(index), dtype=torch.int64, device=index.device)
    return none.scatter_reduce(0, index, rows, "amin")


def number_in_group(group: Tensor) -> Tensor:
    """The number of each row among those of its group, 0, 1, ... in the batch's order: int64 [B] from int64 [B]."""
    ordered, order = group.sort(stable=True)
    number = torch.arange(len(group), device=group.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(order).scatter_(0, order, number)


def tree_nodes(tensordict: TensorDictBase) -> Tensor:
    """The nodes of every depth, a number for each of the whole batch's: int64 [B, D]."""
    group, node = tensordict[GROUP], tensordict[TREE_NODE]
    return torch.stack([partition(group, column) for column in node.unbind(-1)], -1)


def tree_level(tensordict: TensorDictBase, step: Tensor) -> Tensor:
    """The level, 0 .. D - 1, that each step belongs to: int64 [B, K] from int64 [B, K]."""
    return (tensordict[TREE_STEP][:, None, :] <= step[:, :, None]).sum(-1) - 1


def group_sum(values: Tensor, group: Tensor) -> Tensor:
    """Sum over the members of each row's group, column by column: [B, ...] from [B, ...] and int64 [B]."""
    ids, index = torch.unique(group, return_inverse=True)
    return values.new_zeros(len(ids), *values.shape[1:]).index_add(0, index, values)[index]


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Mean over the members of each row's group, column by column: [B, ...] from [B, ...] and int64 [B]."""
    return group_sum(values, group) / group_sum(torch.ones_like(values), group)


def group_max(values: Tensor, group: Tensor) -> Tensor:
    """Largest value of the members of each row's group, column by column: [B, ...] from [B, ...] and int64 [B]."""
    ids, index = torch.unique(group, return_inverse=True)
    rows = index.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    most = values.new_full((len(ids), *values.shape[1:]), -torch.inf)
    return most.scatter_reduce(0, rows, values, "amax")[index]
