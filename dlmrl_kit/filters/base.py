"""The interface of filters, which keep some samples of a rollout by their rewards; only these are trained."""

from __future__ import annotations

from typing import ClassVar

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import GROUP, REWARD, Key
from dlmrl_kit.core.promises import Given, promises, tensor_fault


def _one_each(result: object, given: Given) -> str:
    reward = given["tensordict"][REWARD]
    return tensor_fault(result, "bool", reward.shape, device=reward.device)


class Filter(Component):
    """Base class of rollout filters; subclasses implement ``keep``.

    Reads ``reward`` [B] and ``group`` int64 [B]; writes no key. ``forward`` returns the samples that are kept, possibly
    none. A filter should keep whole groups, so that it does not change the group advantages of the others.
    """

    implemented: ClassVar[tuple[str, ...]] = ("keep", "forward")

    def __init__(self) -> None:
        super().__init__()
        self.in_keys: list[Key] = [REWARD, GROUP]
        self.out_keys: list[Key] = []

    @promises(_one_each)
    def keep(self, tensordict: TensorDictBase) -> Tensor:
        """Returns which samples are kept, bool [B]."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Returns the samples that are kept, in their order."""
        return tensordict[self.keep(tensordict)]
