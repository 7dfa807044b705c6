"""Base classes of advantages: how much better an action was than expected.

A group advantage compares a sample's return with those of its group, the samples of one prompt. It is a function
``estimate(returns, group)``; returns are [B], or [B, N] with each column compared by itself. Sums run in float64: equal
returns give an advantage of exactly 0.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

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
from dlmrl_kit.core.promises import like, promises


class Advantage(Component):
    """Base class of advantages: they read rewards and write how much better an action was than expected."""

    @property
    def factors(self) -> dict[str, float]:
        """Factors by which these settings scale the expected gradient, besides the claimed one, by their text."""
        return {}


class GroupAdvantage(Advantage):
    """Base class of advantages that compare a sample with its group; subclasses implement ``estimate``.

    ``of_samples`` is overridden where a sample's return is not a number of one key.

    Reads ``reward`` [B], ``group`` int64 [B]: any ids, in any order, groups of any size. Writes ``advantage`` [B]; on
    demand the same number for each chosen step, ``("selected", "advantage")`` [B, K] (then also reads
    ``("selected", "weight")``; 0 where the weight is), or each token, ``("token", "advantage")`` [B, L] (then also
    reads ``completion_ids``).
    """

    implemented: ClassVar[tuple[str, ...]] = ("estimate", "forward")
    returns: ClassVar[Key] = REWARD
    """The key [B] whose numbers are compared; a subclass may take another one, such as a key that a plugin declares."""
    optional_keys = (SELECTED_ADVANTAGE, TOKEN_ADVANTAGE)

    def __init__(self) -> None:
        super().__init__()
        self.in_keys: list[Key] = [self.returns, GROUP]
        self.out_keys = [ADVANTAGE]

    def reads(self, keys: Collection[Key] = ()) -> tuple[Key, ...]:
        """Returns ``reward`` and ``group``, and the keys that give the shapes of what is asked for."""
        shapes: dict[Key, Key] = {SELECTED_ADVANTAGE: SELECTED_WEIGHT, TOKEN_ADVANTAGE: COMPLETION_IDS}
        return (*self.in_keys, *(shapes[key] for key in self.optional_keys if key in keys))

    @promises(like("real", "returns"))
    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Returns the advantage of each return: [B] or [B, N] from returns of that shape and ``group`` int64 [B]."""
        raise NotImplementedError

    def of_samples(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the advantage of each sample, [B]: ``estimate`` of what is compared."""
        return self.estimate(tensordict[self.returns], tensordict[GROUP])

    def forward(self, tensordict: TensorDictBase, *, keys: Collection[Key] = ()) -> TensorDictBase:
        """Writes ``advantage``, and what was asked for."""
        advantage = self.of_samples(tensordict)
        if SELECTED_ADVANTAGE in keys:
            tensordict.set(SELECTED_ADVANTAGE, torch.where(tensordict[SELECTED_WEIGHT] > 0, advantage[:, None], 0.0))
        if TOKEN_ADVANTAGE in keys:
            tensordict.set(TOKEN_ADVANTAGE, advantage[:, None].repeat(1, tensordict[COMPLETION_IDS].shape[1]))
        return tensordict.set(ADVANTAGE, advantage)
