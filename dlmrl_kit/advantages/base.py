"""Group advantages: how much better a sample's return is than what its group - the samples of one prompt - got.

A group estimator is a function ``estimate(returns, group)``; returns are [B], or [B, N] with each column compared by
itself. Sums run in float64: equal returns give an advantage of exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    ADVANTAGE,
    COMPLETION_IDS,
    GROUP,
    REWARD,
    SELECTED_ADVANTAGE,
    SELECTED_WEIGHT,
    TOKEN_ADVANTAGE,
    Key,
)


class GroupAdvantage(Component):
    """Base class of advantages that compare a sample with its group; subclasses implement ``estimate``.

    Reads ``reward`` [B], ``group`` int64 [B]: any ids, in any order, groups of any size. Writes ``advantage`` [B]; on
    demand the same number for each chosen step, ``("selected", "advantage")`` [B, K] (then also reads
    ``("selected", "weight")``; 0 where the weight is), or each token, ``("token", "advantage")`` [B, L] (then also
    reads ``completion_ids``).

    Raises:
        ValueError: ``ask_for`` names another key.
    """

    optional_keys = (SELECTED_ADVANTAGE, TOKEN_ADVANTAGE)

    def __init__(self) -> None:
        super().__init__()
        self.in_keys: list[Key] = [REWARD, GROUP]
        self.out_keys = [ADVANTAGE]

    def ask_for(self, keys: Iterable[Key]) -> None:
        """As ``Component``; the keys that give the asked shapes become ``in_keys``."""
        super().ask_for(keys)
        shapes: dict[Key, Key] = {SELECTED_ADVANTAGE: SELECTED_WEIGHT, TOKEN_ADVANTAGE: COMPLETION_IDS}
        self.in_keys = [REWARD, GROUP, *(shapes[key] for key in self.asked)]

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Advantage of each return: [B] or [B, N] from returns of that shape and int64 [B]."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes ``advantage``, and what was asked for."""
        advantage = self.estimate(tensordict[REWARD], tensordict[GROUP])
        if SELECTED_ADVANTAGE in self.asked:
            tensordict.set(SELECTED_ADVANTAGE, torch.where(tensordict[SELECTED_WEIGHT] > 0, advantage[:, None], 0.0))
        if TOKEN_ADVANTAGE in self.asked:
            tensordict.set(TOKEN_ADVANTAGE, advantage[:, None].repeat(1, tensordict[COMPLETION_IDS].shape[1]))
        return tensordict.set(ADVANTAGE, advantage)


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
