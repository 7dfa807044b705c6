"""Selectors of the first steps that are made smaller for the audit in right and wrong ways."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import STEP_VALID
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.selectors.base import Selector


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

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
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

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
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

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
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
