"""Filters with one mistake each."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.filters.base import Filter


class KeepsTheBest(Filter):
    """Keeps good samples."""

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict["reward"] > 0.5


class KeepsTheFirst(Filter):
    """Keeps the group that comes first."""

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict["group"] == tensordict["group"][0]


class SortsSamples(Filter):
    """Returns the samples by reward."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict[tensordict["reward"].argsort(stable=True)]


class ChangesWhatIsKept(Filter):
    """Centres the rewards that it keeps."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        kept = tensordict[torch.ones_like(tensordict["group"], dtype=torch.bool)]
        return kept.set("reward", kept["reward"] - 0.5)


class ChangesItsMind(Filter):
    """Keeps everything every other time."""

    calls = 0

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        ChangesItsMind.calls += 1
        return torch.full_like(tensordict["group"], ChangesItsMind.calls % 2, dtype=torch.bool)
