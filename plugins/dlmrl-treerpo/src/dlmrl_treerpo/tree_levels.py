"""Tree levels (d-TreeRPO, arXiv 2512.09675): the transitions from parent to child of a tree of samples are trained.

Every sample below the child holds the transition, each time with weight 1 / (samples below the child).
"""

from __future__ import annotations

import torch
from dlmrl_kit.core.keys import GROUP, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_sum, num_valid
from dlmrl_kit.selectors.base import Selector
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_treerpo.nodes import TREE_NODE, TREE_STEP, tree_level, tree_nodes


@register(
    "selector",
    paper="arXiv 2512.09675",
    unbiased=False,
    under="a transition counts once, however many samples share it, so early levels count less",
)
class TreeLevels(Selector):
    """Makes one segment of each level of the tree, from the state of the parent to that of the child.

    The weights of a transition sum to 1 over the samples that hold it: all transitions count the same. With
    ``AllSteps`` instead they count as often as samples share them, which is the policy gradient.

    Reads ``("step", "valid")``, ``group`` and the tree's keys. Writes as ``Selector``; an entry is the first step of
    its level.
    """

    segments = True

    def __init__(self) -> None:
        super().__init__(GROUP, TREE_NODE, TREE_STEP)

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the first step of each level that the sample reaches."""
        valid = tensordict[STEP_VALID]
        return torch.zeros_like(valid).scatter(1, tensordict[TREE_STEP], True) & valid

    def choose(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Chooses the levels, each with weight 1 over the number of samples below its node."""
        step, used = super().choose(tensordict)
        node = tree_nodes(tensordict)
        below = [group_sum(torch.ones_like(used[:, 0]), column) for column in node.unbind(-1)]
        return step, used / torch.stack(below, -1).gather(1, tree_level(tensordict, step))

    def ends(self, tensordict: TensorDictBase, step: Tensor) -> Tensor:
        """Returns the first step of the next level, or the number of steps."""
        start = tensordict[TREE_STEP][:, None, :]
        later = torch.where(start > step[:, :, None], start, tensordict[STEP_VALID].shape[1]).amin(-1)
        return torch.minimum(later, num_valid(tensordict)[:, None])
