r"""Self-distillation (d-TreeRPO, arXiv 2512.09675): a parent's prediction follows what its better children drew.

For a parent of a tree of samples and its children c with A_c > 0, w_c = softmax(A_c / tau) over these children. At a
position l that some of them committed in the segment below the parent,

    q_l(v) = sum of w_c over those with token v at l  /  sum of w_c over those that committed l
    value = mean over all (parent, l) of KL(q_l || p_parent,l),    loss = coefficient * value

Coefficient and tau may follow a schedule over the updates of the run. A parent with one child has no value. The
released code computes this in three nested loops.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    GROUP,
    PROGRESS,
    SELECTED_ADVANTAGE,
    SELECTED_STEP,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    SELECTED_WEIGHT,
    Key,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_max, group_sum, partition, where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import Term
from dlmrl_kit.schedules.base import Schedule
from dlmrl_kit.schedules.curves import Constant, Exponential, Polynomial
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_treerpo.nodes import TREE_NODE, TREE_STEP, tree_level, tree_nodes

LEAST_TEMPERATURE = 1e-6  # stands in for a tau of 0, at which a schedule may end


@register("regulariser", paper="arXiv 2512.09675")
class SelfDistillation(Term):
    """Pulls a parent's prediction towards the tokens that its children of positive advantage drew.

    For the selector ``TreeLevels`` and a likelihood of positions given the parent's state (``StepMerge``): a segment
    takes part if it starts where a level starts, with the selector's weight as the share of its child.

    Args:
        coefficient: multiplies the mean, at least 0: a number, or a schedule over the updates of the run; None means
            the paper's, ``Exponential(0, 3e-3, rate=2)``.
        tau: temperature of the weights, at least 0 (and taken to be at least 1e-6): a number, or a schedule; None means
            the paper's, ``Polynomial(2, 0, power=0.7)``.

    Reads ``("selected", "token_log_prob")`` (with gradient) and ``("selected", "token_mask")``, both [B, K, L];
    ``("selected", "advantage")``, ``("selected", "weight")`` and ``("selected", "step")``, all [B, K];
    ``completion_ids`` [B, L], ``group``, ``progress`` [B] and the tree's keys. Returns ``loss_self_distillation`` and
    ``self_distillation`` (before it is multiplied). ``count`` is the number of (parent, position) pairs. Minibatches
    hold whole groups.

    Raises:
        ValueError: a value out of range; when run, token log-probabilities that are not by position.
    """

    needs_groups: ClassVar[bool] = True
    mean_key = "self_distillation"

    def __init__(self, coefficient: float | Schedule | None = None, tau: float | Schedule | None = None) -> None:
        tree: list[Key] = [GROUP, TREE_NODE, TREE_STEP, COMPLETION_IDS, PROGRESS]
        selected: list[Key] = [
            SELECTED_TOKEN_LOG_PROB,
            SELECTED_TOKEN_MASK,
            SELECTED_ADVANTAGE,
            SELECTED_WEIGHT,
            SELECTED_STEP,
        ]
        super().__init__([*selected, *tree], ["loss_self_distillation", "self_distillation"])
        published = Exponential(0.0, 3e-3, 2.0), Polynomial(2.0, 0.0, 0.7)
        self.coefficient = self._schedule("coefficient", published[0] if coefficient is None else coefficient)
        self.tau = self._schedule("tau", published[1] if tau is None else tau)

    def _schedule(self, name: str, value: float | Schedule) -> Schedule:
        usable = isinstance(value, Schedule) or (isinstance(value, (int, float)) and math.isfinite(value))
        check(usable, self, name, value, "a number or a schedule")
        schedule = value if isinstance(value, Schedule) else Constant(value)
        least = schedule(torch.linspace(0, 1, 101)).min()
        check(bool(least >= 0), self, name, value, "at least 0 at all times")
        return schedule

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """Counts the positions of parents that have a target: an int64 scalar."""
        parent, part = self._targets(tensordict)
        # Every segment of a parent sees all of its positions: each counts once, divided among the segments.
        return (group_sum(part, parent).gt(0) / group_sum(torch.ones_like(part), parent)).sum().round().long()

    def multiplier(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the coefficient at this point of the run."""
        return self.coefficient(tensordict[PROGRESS].detach()).amax()

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums KL(q || p) over the (parent, position) pairs."""
        parent, part = self._targets(tensordict)
        log_prob = tensordict[SELECTED_TOKEN_LOG_PROB].flatten(0, 1)
        tokens = tensordict[COMPLETION_IDS].repeat_interleave(tensordict[SELECTED_WEIGHT].shape[1], 0)
        share = part / group_sum(part, parent).masked_fill(part == 0, 1)  # of a child in the target of its parent
        # Children that drew the same token at a position have one probability q between them. The KL is summed child
        # by child: a child's share of q, times log q - log p of its own token.
        position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        same = partition(parent[:, None].expand_as(tokens).flatten(), position.flatten(), tokens.flatten())
        target = group_sum(share.flatten(), same).reshape(share.shape)
        log_target = where_used(target, part > 0).masked_fill(part == 0, 1).log().to(log_prob.dtype)
        return (share.to(log_prob.dtype) * (log_target - where_used(log_prob, part > 0))).sum(), {}

    def _targets(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Computes the target of each parent, as the contributions of the N = B * K segments to it.

        Returns:
            The segments' parents, int64 [N], and their contributions to the target of each position, float64 [N, L],
            not normalised.
        """
        mask, weight = tensordict[SELECTED_TOKEN_MASK], tensordict[SELECTED_WEIGHT].detach()
        length = tensordict[COMPLETION_IDS].shape[-1]
        if mask.shape[-1] != length:
            raise ValueError(
                "SelfDistillation compares the children of a parent position by position: it needs a likelihood that "
                f"scores positions, such as StepMerge; token_mask is {list(mask.shape)}, completions have "
                f"{length} positions"
            )
        step = tensordict[SELECTED_STEP]
        level = tree_level(tensordict, step)
        starts = tensordict[TREE_STEP].gather(1, level) == step
        above = torch.cat([torch.zeros_like(tensordict[GROUP])[:, None], tree_nodes(tensordict)], 1).gather(1, level)
        group = tensordict[GROUP][:, None].expand_as(level)
        parent = partition(group.flatten(), level.flatten(), above.flatten())
        used = (starts & (weight != 0)).flatten()
        child = where_used(weight.flatten().double(), used)
        advantage = where_used(tensordict[SELECTED_ADVANTAGE].detach().flatten().double(), used)
        # The weights of a child's samples sum to 1, so their sum over a parent counts its children.
        good = used & (advantage > 0) & (group_sum(child, parent) > 1 + 1e-6)
        tau = self.tau(tensordict[PROGRESS].detach().double()).amax().clamp(min=LEAST_TEMPERATURE)
        scaled = (advantage / tau).masked_fill(~good, -math.inf)
        most = group_max(scaled, parent).masked_fill(~good, 0)
        mass = where_used((scaled - most).exp() * child, good)
        return parent, mass[:, None] * mask.flatten(0, 1)
