r"""Sibling leave-one-out (d-TreeRPO, arXiv 2512.09675): a child of a tree against the other children of its parent.

    V(leaf) = reward,    V(node) = mean of V over its children,    A(child) = V(child) - mean of V over its siblings

The siblings share the parent's state and go on independently, so their mean is a baseline of that state, and V(child)
is an unbiased estimate of what the child's state is worth.
"""

from __future__ import annotations

import torch
from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.core.keys import GROUP, REWARD, SELECTED_ADVANTAGE, SELECTED_STEP, SELECTED_WEIGHT
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import first_rows, group_sum
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_treerpo.nodes import TREE_NODE, TREE_STEP, tree_level, tree_nodes


@register("advantage", paper="arXiv 2512.09675", unbiased=True, under="trees of samples, every step with weight 1")
class SiblingLeaveOneOut(Advantage):
    """Compares, at every level of a tree of samples, the value of a sample's node with those of the node's siblings.

    Reads ``reward`` [B], ``group`` int64 [B], the tree's keys, ``("selected", "step")`` int64 [B, K] and
    ``("selected", "weight")`` [B, K]. Writes ``("selected", "advantage")`` [B, K]: that of the level which the step
    belongs to, 0 where the weight is. Without siblings there is no baseline: A = V.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [REWARD, GROUP, TREE_NODE, TREE_STEP, SELECTED_STEP, SELECTED_WEIGHT]
        self.out_keys = [SELECTED_ADVANTAGE]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes values from the leaves up, then their differences, and writes those of the chosen steps."""
        reward, used = tensordict[REWARD], tensordict[SELECTED_WEIGHT] > 0
        advantage = sibling_advantages(reward.double(), tree_nodes(tensordict), tensordict[GROUP])
        chosen = advantage.to(reward.dtype).gather(1, tree_level(tensordict, tensordict[SELECTED_STEP]))
        return tensordict.set(SELECTED_ADVANTAGE, torch.where(used, chosen, 0.0))


def sibling_advantages(reward: Tensor, node: Tensor, group: Tensor) -> Tensor:
    """Returns A of each sample's node at every depth.

    Args:
        reward: float64 [B].
        node: int64 [B, D], as ``dlmrl_treerpo.nodes.tree_nodes``.
        group: int64 [B], the root.

    Returns:
        float64 [B, D].
    """
    found = []
    value = group_sum(reward, node[:, -1]) / group_sum(torch.ones_like(reward), node[:, -1])
    for depth in range(node.shape[1] - 1, -1, -1):
        parent = node[:, depth - 1] if depth > 0 else group
        once = torch.zeros_like(value).index_fill(0, first_rows(node[:, depth]), 1)  # a child counts once
        total, children = group_sum(once * value, parent), group_sum(once, parent)
        found.append(value - (total - value) / (children - 1).clamp(min=1))
        value = total / children
    return torch.stack(found[::-1], -1)
