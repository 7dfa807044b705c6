r"""Weighted denoising cross-entropy (DMPO, arXiv 2510.08233): match pi* ~ pi_ref exp(R / alpha), not the highest R.

    x_b = log pi_ref_b - log pi_old_b,    w+ = softmax(c (x + R / alpha)),    w- = softmax(c (x - R / alpha))
    L = -(1/B) sum_b G_b (w+_b - w-_b) log pi_b,    log pi_b = sum_k w_bk log pi_bk

with softmaxes over the G_b samples of b's group. w+ reweighs samples of the old policy to pi*, and its cross-entropy
with pi is the objective; w- is the baseline that keeps a group of bad samples from being imitated. c <= 1 is the
largest factor at which the effective sample size 1 / sum w+^2 is at least the asked share of G_b; it falls as c grows.

The released code has c = 1 unless it is asked to look for the c in [0.01, 0.99] at which the effective sample size is
closest to the asked one; it divides the loss by the fixed length.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    GROUP,
    REWARD,
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_REF_LOG_PROB,
    SELECTED_WEIGHT,
    Key,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_softmax, group_sum, where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import Objective, mean_over, sequence_log_prob, used_sequences

_HALVINGS = 40


@register("loss", paper="arXiv 2510.08233", unbiased=False, under="another objective")
class RewardTilted(Objective):
    """Minimises the cross-entropy of the reward-tilted reference and the policy, less a baseline of negative rewards.

    Args:
        alpha: temperature of the rewards, positive: pi* is the reference where it is large, the best samples alone
            where it is small.
        least_ess: least effective sample size of the weights, as a share of the group, in [0, 1); 0 leaves c at 1.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "old_log_prob")``, ``("selected",
    "ref_log_prob")`` and ``("selected", "weight")``, all [B, K], ``reward`` [B] and ``group`` int64 [B]; no advantage.
    Returns ``loss_objective`` and, over the samples that have a segment of non-zero weight, ``log_prob`` (mean),
    ``ess`` (mean effective sample size, as a share) and ``tilt`` (mean c). ``count`` is B. Minibatches hold whole
    groups.

    Raises:
        ValueError: a value out of range.
    """

    needs_groups = True

    def __init__(self, alpha: float = 0.04, least_ess: float = 0.0) -> None:
        scored: list[Key] = [SELECTED_LOG_PROB, SELECTED_OLD_LOG_PROB, SELECTED_REF_LOG_PROB]
        keys = [*scored, SELECTED_WEIGHT, REWARD, GROUP]
        super().__init__(keys, ["log_prob", "ess", "tilt"])
        check(0 < alpha < math.inf, self, "alpha", alpha, "positive and finite")
        check(0 <= least_ess < 1, self, "least_ess", least_ess, "in [0, 1)")
        self.alpha = alpha
        self.least_ess = least_ess

    def units(self, tensordict: TensorDictBase) -> Tensor:
        """Counts the samples that have a segment of non-zero weight."""
        return used_sequences(tensordict[SELECTED_WEIGHT]).sum()

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the sum of G (w+ - w-) log pi."""
        weight, group = tensordict[SELECTED_WEIGHT], tensordict[GROUP]
        used = used_sequences(weight)
        log_prob = sequence_log_prob(tensordict[SELECTED_LOG_PROB], weight)
        with torch.no_grad():
            reference, old = (
                sequence_log_prob(tensordict[key], weight).double()
                for key in (SELECTED_REF_LOG_PROB, SELECTED_OLD_LOG_PROB)
            )
            reward = where_used(tensordict[REWARD], used).double() / self.alpha
            tilt = largest_tilt(reference - old + reward, group, used, self.least_ess)
            up = softmax_of_used(tilt * (reference - old + reward), group, used)
            down = softmax_of_used(tilt * (reference - old - reward), group, used)
            size = group_sum(used.double(), group)
            share = (size * (up - down)).to(log_prob.dtype)
            ess = effective_share(up, group, size).to(log_prob.dtype)
            diagnostics = {
                "log_prob": mean_over(log_prob, used),
                "ess": mean_over(ess, used),
                "tilt": mean_over(tilt.to(log_prob.dtype), used),
            }
        return -(share * log_prob).sum(), diagnostics


def softmax_of_used(values: Tensor, group: Tensor, used: Tensor) -> Tensor:
    """Takes the softmax over the used members of each row's group: float64 [B], 0 in rows that are not used."""
    return group_softmax(values.masked_fill(~used, torch.finfo(values.dtype).min), group) * used


def effective_share(weights: Tensor, group: Tensor, size: Tensor) -> Tensor:
    """Returns 1 / (n sum w^2) of each row's group, [B], from weights that sum to 1 and its size n, both [B]."""
    squares = group_sum(weights.square(), group) * size
    return 1 / squares.masked_fill(squares == 0, 1)


def largest_tilt(values: Tensor, group: Tensor, used: Tensor, least: float) -> Tensor:
    """Returns the largest c in [0, 1] at which softmax(c values) has an effective share of at least ``least``: [B]."""
    size = group_sum(used.double(), group)

    def enough(tilt: Tensor) -> Tensor:
        return effective_share(softmax_of_used(tilt * values, group, used), group, size) >= least

    low, high = torch.zeros_like(values), torch.ones_like(values)
    whole = enough(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = enough(middle)
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return torch.where(whole, 1.0, low)
