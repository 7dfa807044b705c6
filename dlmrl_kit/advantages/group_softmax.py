r"""Softmax weights over the group (wd1, arXiv 2507.08838): likelihood up for the good, down for the bad, no ratio.

    w+_i = exp(R_i / tau) / sum_j exp(R_j / tau),    w-_i = exp(-R_i / tau) / sum_j exp(-R_j / tau)
    A_i = G (w+_i - w-_i),    sums over the G samples of the prompt

With ``Reinforce`` this is wd1's weighted log-likelihood -sum_i (w+_i - w-_i) log pi_i, averaged over prompts. Centring
R first, as wd1 does, changes no weight. Where rewards are close, A is 2 / tau times the group-mean advantage; it never
exceeds G. The released code takes the softmax over the samples in the local micro-batch; here it is taken over the
group, so that batch shapes change nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_softmax, group_sum
from dlmrl_kit.core.validate import check


@register("advantage", paper="arXiv 2507.08838", unbiased=False, under="weights that are nonlinear in the rewards")
class GroupSoftmax(GroupAdvantage):
    """Credits each sample with softmax(rewards) - softmax(-rewards) over its group, times the size of the group.

    Reads and writes as ``GroupAdvantage``.

    Args:
        temperature: tau, positive: what returns are divided by before the softmax.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check(0 < temperature < math.inf, self, "temperature", temperature, "positive and finite")
        self.temperature = temperature

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Returns G (w+ - w-); 0 in a group of one."""
        scaled = returns.double() / self.temperature
        size = group_sum(torch.ones_like(scaled), group)
        up, down = group_softmax(scaled, group), group_softmax(-scaled, group)
        return (size * (up - down)).to(returns.dtype)
