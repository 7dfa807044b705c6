"""Advantages with one mistake each."""

from __future__ import annotations

from collections.abc import Collection

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.core.keys import Key


class WritesLess(GroupAdvantage):
    """Forgets to write."""

    def forward(self, tensordict: TensorDictBase, *, keys: Collection[Key] = ()) -> TensorDictBase:
        return tensordict


class WrongShape(LeaveOneOut):
    """Keeps a dimension too many."""

    def forward(self, tensordict: TensorDictBase, *, keys: Collection[Key] = ()) -> TensorDictBase:
        super().forward(tensordict, keys=keys)
        return tensordict.set("advantage", tensordict["advantage"][:, None])


class OnlyFloat32(LeaveOneOut):
    """Computes in single precision."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return super().estimate(returns, group).float()


class NotCopied(LeaveOneOut):
    """Keeps a function that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x: x


class GroupsByPlace(GroupAdvantage):
    """Takes the ids of groups for indices."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return returns * group


class NotFinite(GroupAdvantage):
    """Divides by a spread that may be 0."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return (returns - returns.mean()) / returns.std(correction=0)


class ReadsWhatItWrites(LeaveOneOut):
    """Says that it reads what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [*self.in_keys, "advantage"]


class DividesByOthers(GroupAdvantage):
    """Divides by the number of other samples."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return returns / (len(returns) - 1)
