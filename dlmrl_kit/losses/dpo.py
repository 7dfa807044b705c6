r"""Direct preference optimisation (arXiv 2305.18290) of diffusion models, as in VRPO (LLaDA 1.5, arXiv 2505.19223).

    L = -mean over groups of the mean over its pairs (w, l) of
            log sigmoid(beta [(log pi_w - log ref_w) - (log pi_l - log ref_l)]),    log pi = sum_k w_k log pi_k

A pair is a completion w of the group's highest reward and one, l, of its lowest; a group whose rewards are all equal
has none. With pairs from a data set, groups are of two. VRPO estimates log pi and log ref with the same masks, many of
them: ``WholeSequence(draws=M)`` and an ELBO likelihood.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.functional import logsigmoid

from dlmrl_kit.core.keys import GROUP, REWARD, SELECTED_LOG_PROB, SELECTED_REF_LOG_PROB, SELECTED_WEIGHT
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_max, where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import Average, Objective, sequence_log_prob, used_sequences


def best_and_worst(reward: Tensor, group: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the members of highest and of lowest reward of each group; none where all rewards are equal.

    Args:
        reward: [B].
        group: int64 [B].
        used: bool [B], which samples count at all.

    Returns:
        bool [B] each.
    """
    highest = group_max(reward.masked_fill(~used, -math.inf), group)
    lowest = -group_max((-reward).masked_fill(~used, -math.inf), group)
    mixed = used & (highest > lowest)
    return mixed & (reward == highest), mixed & (reward == lowest)


def preference_pairs(best: Tensor, worst: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lists all pairs of a best and a worst sample of the same group.

    Args:
        best, worst: bool [B].
        group: int64 [B].

    Returns:
        Row of the preferred sample and of the other one, int64 [N] each, and the share of the pair among those of its
        group, float64 [N].
    """
    index = torch.unique(group, return_inverse=True)[1]
    losers = worst.nonzero().squeeze(-1)
    losers = losers[index[losers].argsort(stable=True)]
    per_group = torch.bincount(index[losers], minlength=len(group))
    first = per_group.cumsum(0) - per_group
    winners = best.nonzero().squeeze(-1)
    number = per_group[index[winners]]
    row = winners.repeat_interleave(number)
    place = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number).repeat_interleave(number)
    column = losers[first[index[row]] + place]
    return row, column, 1 / torch.bincount(index[row], minlength=len(group))[index[row]].double()


class OverGroups(Average):
    """Sums over the samples of groups that have a pair, divided by the number of these groups."""

    reads = (REWARD, GROUP)
    segmentwise = cuts_sequences = False  # a piece without a segment of a sample does not know that it counts

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the number of groups that have a pair, an int64 scalar."""
        group = tensordict[GROUP]
        best, _ = best_and_worst(tensordict[REWARD], group, used_sequences(tensordict[SELECTED_WEIGHT]))
        return torch.full((), len(torch.unique(group[best])), dtype=torch.int64, device=group.device)

    def of_steps(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Returns the weighted sum of the values, [B, K], in groups that have a pair."""
        return super().of_steps(where_used(values, self._paired(tensordict)[:, None]), tensordict)

    def of_sequences(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Returns the sum of the values per token of the completion, [B], in groups that have a pair."""
        return super().of_sequences(where_used(values, self._paired(tensordict)), tensordict)

    def _paired(self, tensordict: TensorDictBase) -> Tensor:
        group = tensordict[GROUP]
        best, _ = best_and_worst(tensordict[REWARD], group, used_sequences(tensordict[SELECTED_WEIGHT]))
        return group_max(best.to(tensordict[REWARD].dtype), group) > 0


@register("loss", paper="arXiv 2305.18290; arXiv 2505.19223", unbiased=False, under="another objective")
class DPO(Objective):
    """Prefers each group's best completions to its worst ones, relative to the reference policy.

    Args:
        beta: how strongly the policy is held to the reference; positive.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "ref_log_prob")`` and ``("selected", "weight")``,
    all [B, K], ``reward`` [B] and ``group`` int64 [B]. Returns ``loss_objective`` and, over pairs, each group counting
    once, ``preference_accuracy`` (share of pairs ranked right) and ``preference_margin`` (mean of the sigmoid's
    argument). ``count`` is the number of groups that have a pair. Minibatches hold whole groups.

    Raises:
        ValueError: a value out of range.
    """

    average = OverGroups()
    needs_groups = True

    def __init__(self, beta: float = 0.2) -> None:
        names = ["preference_accuracy", "preference_margin"]
        super().__init__([SELECTED_LOG_PROB, SELECTED_REF_LOG_PROB, SELECTED_WEIGHT, REWARD, GROUP], names)
        check(0 < beta < math.inf, self, "beta", beta, "positive and finite")
        self.beta = beta

    def units(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the number of groups that have a pair."""
        return self.count(tensordict)

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums, over groups, the mean over their pairs of -log sigmoid(margin)."""
        weight, group = tensordict[SELECTED_WEIGHT], tensordict[GROUP]
        best, worst = best_and_worst(tensordict[REWARD], group, used_sequences(weight))
        row, column, share = preference_pairs(best, worst, group)
        log_prob, reference = (
            sequence_log_prob(tensordict[key], weight) for key in (SELECTED_LOG_PROB, SELECTED_REF_LOG_PROB)
        )
        relative = self.beta * (log_prob - reference.detach())
        margin = relative[row] - relative[column]
        share = share.to(margin.dtype)
        groups = share.sum().clamp(min=1)
        with torch.no_grad():
            diagnostics = {
                "preference_accuracy": ((margin > 0) * share).sum() / groups,
                "preference_margin": (margin * share).sum() / groups,
            }
        return -(share * logsigmoid(margin)).sum(), diagnostics
