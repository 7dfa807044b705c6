r"""Moments of the gradient of a batch of several groups, from the law of a single group.

Groups are independent, and a loss is a quotient of sums over them (``losses.base``):

    g = sum_i total_i / sum_i count_i

so that E g and E ||g||^2 need no list of batches. With 1/c = integral of t^(c - 1) dt and 1/c^2 = integral of
t^(c - 1) (-log t) dt, both over t from 0 to 1, expectations become products over the groups:

    E g       = sum_i            integral t^-1          E[total_i t^count_i]  prod_{j != i} E[t^count_j]  dt
    E ||g||^2 = sum_i, sum_{i,j} integral t^-1 (-log t) E[...]                prod of the others          dt

Gauss-Legendre quadrature after t = x^4 gives them up to rounding. Where every group has the same count, as without a
filter and with a mean over samples, E g is that of one group; where it varies, from groups that a filter drops or from
lengths, g is a quotient of random sums and E g depends on how many groups there are.

Prompts come in turn, as in training: each ``groups // prompts`` times, and the rest is a random choice without repeats.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_NODES = 400
_POWER = 4


@dataclass(frozen=True)
class Part:
    """Some columns of a gradient's coefficients whose squared norm is wanted.

    Attributes:
        columns: int64 [C'], their numbers.
        gram: float64 [C', C'], the inner products of what the columns stand for; None: they are orthonormal.
    """

    columns: Tensor
    gram: Tensor | None

    def products(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns the inner products [N, M] of the rows of [N, C] and [M, C]."""
        a, b = a[:, self.columns], b[:, self.columns]
        return (a if self.gram is None else a @ self.gram) @ b.mT

    def squares(self, a: Tensor) -> Tensor:
        """Returns the squared norms [N] of the rows of [N, C]."""
        a = a[:, self.columns]
        return ((a if self.gram is None else a @ self.gram) * a).sum(-1)


@dataclass
class GroupLaw:
    """The law of count and total of a random group of one prompt, by the value of the count; ``add`` builds it.

    Attributes:
        parts: whose squared norms are kept.
        values: by count, rounded: its probability, [], E[total; count], [C], and E[||total||^2; count], [parts].
    """

    parts: Sequence[Part]
    values: dict[float, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def add(self, probability: Tensor, total: Tensor, count: Tensor) -> None:
        """Adds groups with their probabilities [N], totals [N, C] and counts [N], all float64."""
        found, place = torch.unique(count.round(decimals=9), return_inverse=True)
        squares = torch.stack([part.squares(total) for part in self.parts], dim=-1)
        sums = [
            torch.zeros(len(found), *rows.shape[1:], dtype=torch.float64).index_add(0, place, rows)
            for rows in (probability, probability[:, None] * total, probability[:, None] * squares)
        ]
        for i, value in enumerate(found.tolist()):
            own = (sums[0][i], sums[1][i], sums[2][i])
            old = self.values.get(value)
            self.values[value] = own if old is None else (own[0] + old[0], own[1] + old[1], own[2] + old[2])

    def stacked(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns counts [V], probabilities [V], totals [V, C] and squared norms [V, parts]."""
        probability, total, squares = (torch.stack(part) for part in zip(*self.values.values(), strict=True))
        return torch.tensor(list(self.values), dtype=torch.float64), probability, total, squares


@functools.cache
def _quadrature() -> tuple[Tensor, Tensor]:
    """Returns nodes and weights of Gauss and Legendre on (0, 1), [nodes] each."""
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(_NODES))
    return (nodes + 1) / 2, weights / 2


def compositions(prompts: int, groups: int) -> list[list[int]]:
    """Lists how many groups of each prompt a batch may have; all are equally likely."""
    whole, rest = divmod(groups, prompts)
    return [[whole + (q in extra) for q in range(prompts)] for extra in itertools.combinations(range(prompts), rest)]


def batch_moments(laws: Sequence[GroupLaw], groups: int) -> tuple[Tensor, Tensor]:
    """Computes the moments of the gradient of a batch.

    Args:
        laws: of a group of each prompt.
        groups: how many a batch has.

    Returns:
        E g, [C], and E ||g||^2 of each part, [parts].
    """
    stacked = [law.stacked() for law in laws]
    counts = torch.cat([count for count, *_ in stacked])
    unit = float(counts[counts > 0].min()) if bool((counts > 0).any()) else 1.0
    nodes, weights = _quadrature()
    first = _POWER * weights / nodes / unit
    second = -first * _POWER * nodes.log() / unit
    power = [nodes ** (_POWER * count[:, None] / unit) for count, *_ in stacked]  # t^count: [V, nodes]
    generating = [probability @ own for (_, probability, *_), own in zip(stacked, power, strict=True)]
    mean = torch.zeros(stacked[0][2].shape[1], dtype=torch.float64)
    square = torch.zeros(len(laws[0].parts), dtype=torch.float64)
    ways = compositions(len(laws), groups)

    def others(number: Sequence[int], *left_out: int) -> Tensor:
        """Multiplies the generating functions of all groups but one of each of the prompts ``left_out``: [nodes]."""
        product = torch.ones_like(nodes)
        for q, n in enumerate(number):
            product = product * generating[q] ** (n - left_out.count(q))
        return product

    for number in ways:
        for q, n in enumerate(number):
            if n == 0:
                continue
            _, _, total, squares = stacked[q]
            rest = others(number, q)
            mean += n / len(ways) * ((power[q] @ (first * rest)) @ total)
            square += n / len(ways) * ((power[q] @ (second * rest)) @ squares)
            for p, m in enumerate(number):
                pairs = n * (m - (p == q))
                if pairs == 0:
                    continue
                kernel = (power[q] * (second * others(number, q, p))) @ power[p].mT
                products = torch.stack([(kernel * part.products(total, stacked[p][2])).sum() for part in laws[q].parts])
                square += pairs / len(ways) * products
    return mean, square
