"""Selectors of the first steps that are made smaller for the audit in right and wrong ways."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import SELECTED_STEP, SELECTED_WEIGHT, STEP_ADVANTAGE, STEP_VALID
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.selectors.random_steps import RandomSteps


def first_steps(tensordict: TensorDictBase, count: int) -> Tensor:
    valid = tensordict[STEP_VALID]
    return valid & (torch.arange(valid.shape[1]) < count)


class FirstSteps(Selector):
    """Keeps the first k steps, and says nothing of sizes.

    Args:
        k: how many.
    """

    def __init__(self, k: int = 8) -> None:
        super().__init__()
        self.k = k

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return first_steps(tensordict, self.k)


class ScaledFirstSteps(FirstSteps):
    """Keeps the same share of the steps everywhere. Arguments as ``FirstSteps``."""

    def resized(self, before: Sizes, after: Sizes) -> Selector:
        return rebuilt(self, k=before.scale_steps(self.k, after))


class Budget(Selector):
    """Keeps the first steps, and says nothing of sizes.

    Args:
        budget: how many.
    """

    def __init__(self, budget: int = 8) -> None:
        super().__init__()
        self.budget = budget

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return first_steps(tensordict, self.budget)


class ScaledBudget(Budget):
    """Keeps the same share of the steps everywhere. Arguments as ``Budget``."""

    def resized(self, before: Sizes, after: Sizes) -> Selector:
        return rebuilt(self, budget=before.scale_steps(self.budget, after))


class LosesItsParameter(Selector):
    """Keeps its number of steps under another name.

    Args:
        k: how many.
    """

    def __init__(self, k: int = 8) -> None:
        super().__init__()
        self.count = k

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return first_steps(tensordict, self.count)

    def resized(self, before: Sizes, after: Sizes) -> Selector:
        return rebuilt(self, k=before.scale_steps(self.count, after))


class ForgetsASetting(FirstSteps):
    """Makes itself again with a default.

    Args:
        k: how many.
        share: of what.
    """

    def __init__(self, k: int = 8, share: float = 0.5) -> None:
        super().__init__(k)
        self.share = share

    def resized(self, before: Sizes, after: Sizes) -> Selector:
        return ForgetsASetting(before.scale_steps(self.k, after))


class ResizesItself(FirstSteps):
    """Changes its own number of steps. Arguments as ``FirstSteps``."""

    def resized(self, before: Sizes, after: Sizes) -> Selector:
        self.k = before.scale_steps(self.k, after)
        return self


class BecomesAnother(FirstSteps):
    """Becomes a selector of its base class. Arguments as ``FirstSteps``."""

    def resized(self, before: Sizes, after: Sizes) -> Selector:
        return FirstSteps(before.scale_steps(self.k, after))


class HalvesAgain(FirstSteps):
    """Keeps half as many steps, whatever the sizes are. Arguments as ``FirstSteps``."""

    def resized(self, before: Sizes, after: Sizes) -> Selector:
        return rebuilt(self, k=max(self.k // 2, 1))


class StaysLong(LeftToRight):
    """Keeps its length. Arguments as ``MaskSampler``."""

    def resized(self, before: Sizes, after: Sizes) -> LeftToRight:
        return rebuilt(self)


class WeightedBudget(Budget):
    """Keeps the first steps, all with the same weight. Arguments as ``Budget``."""

    def weights(self, kept: Tensor, valid: Tensor) -> Tensor:
        return super().weights(kept, valid) / self.budget


class BatchBudget(Selector):
    """Keeps the first steps of a batch until their number is used up.

    Args:
        budget: how many.
    """

    def __init__(self, budget: int = 16) -> None:
        super().__init__()
        self.budget = budget

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        valid = tensordict[STEP_VALID]
        return valid & (valid.flatten().cumsum(0) <= self.budget).reshape(valid.shape)


class MostOf(Selector):
    """Keeps a share of the steps.

    Args:
        share: in (0, 1].
    """

    def __init__(self, share: float = 0.98) -> None:
        super().__init__()
        self.share = share

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return first_steps(tensordict, round(self.share * tensordict[STEP_VALID].shape[1]))


class EarlyRandom(RandomSteps):
    """Draws steps among the first ones, and scales the number of draws only.

    Args:
        k: how many.
        horizon: how many of the first steps are drawn from.
    """

    def __init__(self, k: int = 4, horizon: int = 16) -> None:
        super().__init__(k)
        self.horizon = horizon

    def _early(self, tensordict: TensorDictBase) -> TensorDictBase:
        early = tensordict.copy()
        return early.set(STEP_VALID, first_steps(tensordict, self.horizon))

    def choose(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        return super().choose(self._early(tensordict))

    def outcomes(self, tensordict: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
        return super().outcomes(self._early(tensordict))


class EarlyReinforce(Reinforce):
    """Leaves out the loss of late steps.

    Args:
        horizon: how many of the first steps count.
    """

    def __init__(self, horizon: int = 8) -> None:
        super().__init__()
        self.horizon = horizon
        self.in_keys = [*self.in_keys, SELECTED_STEP]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        early = tensordict[SELECTED_STEP] < self.horizon
        return super().forward(tensordict.copy().set(SELECTED_WEIGHT, tensordict[SELECTED_WEIGHT] * early))


class EarlyAdvantage(LeaveOneOut):
    """Says that it compares the first samples of a group only.

    Args:
        most: how many.
    """

    def __init__(self, most: int = 8) -> None:
        super().__init__()
        self.most = most


class WideCache(DualCache):
    """Computes more positions again than the block.

    Args:
        margin: how many.
    """

    def __init__(self, margin: int = 8) -> None:
        self.margin = margin


class ReadsAdvantages(Selector):
    """Keeps steps with a positive advantage, which only few components write."""

    def __init__(self) -> None:
        super().__init__(STEP_ADVANTAGE)

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict[STEP_VALID] & (tensordict[STEP_ADVANTAGE] > 0)
