r"""Shrunk leave-one-out advantage: the group's baseline, drawn towards what the other prompts of the batch got.

    A_i = R_i - b_i,    b_i = (1 - s_i) y_i + s_i M_i

y_i is the mean of the m other samples of the prompt, M_i the mean of the other prompts' group means. Of a handful of
samples y_i is a noisy estimate of what the prompt yields, M_i is a steady estimate of something else; the best mixture
weighs them by the inverse of their mean squared errors as estimates of the prompt's expected reward,

    s_i = a / (a + b),    a = sigma^2 / m,    b = tau^2 + Var(M_i)

sigma^2 is the variance within a group, tau^2 that between the prompts' expected rewards, Var(M_i) = (tau^2 + mean over
the other groups of sigma^2 / n) / (J - 1); they are estimated by the moments of a one-way layout. *Every* one of these
numbers is computed without sample i: b_i is independent of its actions, and the gradient unbiased, whatever s_i is.

Shrinking means towards their mean is due to James and Stein (1961); arXiv 2511.03710 does it to baselines of verifiable
rewards. Here s differs from sample to sample, so that it never depends on the sample and groups may differ in size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from dlmrl_kit import register
from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.core.validate import check
from torch import Tensor


@register("advantage", paper="James and Stein 1961; cousin of arXiv 2511.03710", unbiased=True)
class ShrunkLeaveOneOut(GroupAdvantage):
    """Credits each sample with its return minus a mixture of two means: of the rest of its group, and of other groups.

    Args:
        shrinkage: s, in [0, 1]; 0 is the kit's ``LeaveOneOut``. None estimates it as above, for each sample.

    A group of one has only M; a batch of one group only y. Reads and writes as ``GroupAdvantage``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, shrinkage: float | None = None) -> None:
        super().__init__()
        check(shrinkage is None or 0 <= shrinkage <= 1, self, "shrinkage", shrinkage, "in [0, 1], or None")
        self.shrinkage = shrinkage

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Returns R - b, [B] or [B, N], each column by itself."""
        values = returns.double().reshape(len(returns), -1)
        _, index, counts = torch.unique(group, return_inverse=True, return_counts=True)
        size = counts[:, None].double()
        groups = moments(values, index, size)
        everything = moments(groups.mean, torch.zeros_like(counts), size.new_full((1, 1), len(size)))
        own = without(values, index, groups)
        others = Moments(*(part[index] for part in without(groups.mean, torch.zeros_like(counts), everything)))
        shrinkage = torch.full_like(values, self.shrinkage or 0.0)
        if self.shrinkage is None:
            pooled = (groups.squares.sum(0) - groups.squares[index] + own.squares).clamp(min=0)
            inverse = ((1 / size).sum(0) - 1 / size)[index]
            shrinkage = estimated(own, others, pooled, len(values) - len(size) - 1, inverse)
        shrinkage = shrinkage.masked_fill(own.size == 0, 1).masked_fill(others.size == 0, 0)
        baseline = own.mean + shrinkage * (others.mean - own.mean)
        return (values - baseline).reshape(returns.shape).to(returns.dtype)


class Moments(NamedTuple):
    """Describes groups of numbers by ``size`` [J, 1], ``mean`` [J, N] and ``squares`` [J, N], summed about the mean."""

    size: Tensor
    mean: Tensor
    squares: Tensor


def moments(values: Tensor, index: Tensor, size: Tensor) -> Moments:
    """Computes the moments of each group from values [B, N], the group of each, int64 [B], and the sizes [J, 1]."""
    zeros = values.new_zeros(len(size), values.shape[1])
    mean = zeros.index_add(0, index, values) / size
    return Moments(size, mean, zeros.index_add(0, index, (values - mean[index]).square()))


def without(values: Tensor, index: Tensor, groups: Moments) -> Moments:
    """Computes for each value the moments of its group without it, [B, ...], which are all 0 for a group of one."""
    size, mean = groups.size[index], groups.mean[index]
    count, least = size - 1, (size - 1).clamp(min=1)
    squares = (groups.squares[index] - (values - mean).square() * size / least).clamp(min=0)
    rest = mean + (mean - values) / least
    return Moments(count, rest.masked_fill(count == 0, 0), squares.masked_fill(count == 0, 0))


def estimated(own: Moments, others: Moments, pooled: Tensor, freedom: int, inverse: Tensor) -> Tensor:
    """Estimates s of each sample, [B, N], from the batch without it; 0 where the samples of a prompt do not vary.

    Args:
        own: the rest of the sample's group.
        others: of the means of the other groups; its size is J - 1.
        pooled: sum of squares about the means within all groups, without the sample, [B, N].
        freedom: its degrees of freedom; below 1, s is 0.
        inverse: sum over the other groups of 1 / size, [B, 1].
    """
    m, rest = own.size.clamp(min=1), others.size.clamp(min=1)
    within = pooled / freedom if freedom >= 1 else torch.zeros_like(pooled)
    spread = (others.squares + (own.mean - others.mean).square() * rest / (rest + 1)) / rest
    between = (spread - within * (inverse + 1 / m) / (rest + 1)).clamp(min=0)
    a, b = within / m, between + (between + within * inverse / rest) / rest
    return torch.where(a > 0, a / (a + b), 0.0)
