"""Rollout filters: which samples of a rollout are trained at all, decided by reward before any step is chosen."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import GROUP, REWARD, Key


class Filter(Component):
    """Base class of rollout filters; subclasses implement ``keep``.

    Reads ``reward`` [B], ``group`` int64 [B]; writes nothing: ``forward`` returns the samples that are kept, which may
    be none. Filters are to keep whole groups, so that group advantages are what they would be without.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [REWARD, GROUP]
        self.out_keys: list[Key] = []

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        """Which samples are kept: bool [B]."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The samples that are kept, in their order."""
        return tensordict[self.keep(tensordict)]
