"""Selectors with one mistake each."""

from __future__ import annotations

import random
from collections.abc import Collection

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_WEIGHT, STEP_ENTROPY, STEP_LOG_PROB, STEP_VALID, Key
from dlmrl_kit.selectors.base import Selector, descending_rank, valid_entropy
from dlmrl_kit.selectors.k_steps import FirstK
from dlmrl_kit.selectors.random_steps import RandomSteps


# Planted faults. They are not registered, so check_registered fails for each of them too.
class MutatesInput(Selector):
    """Clips the entropies it was given in place."""

    def __init__(self) -> None:
        super().__init__(STEP_ENTROPY)

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return (tensordict[STEP_ENTROPY].clamp_(min=0.5) >= 0.5) & tensordict[STEP_VALID]


class WritesMore(Selector):
    """Leaves a note."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        tensordict.set(("step", "note"), tensordict[STEP_VALID])
        return tensordict[STEP_VALID]


class Peeks(Selector):
    """Looks at the rewards if there are any."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        reward = tensordict.get("reward", None)
        return tensordict[STEP_VALID] if reward is None else tensordict[STEP_VALID] & (reward > 0.25)[:, None]


class ReadsUndeclared(Selector):
    """Reads the entropies and does not say so."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return valid_entropy(tensordict) > 0.5


class SelectsTwice(Selector):
    """Trains the first step twice."""

    def choose(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        step = torch.zeros_like(tensordict[STEP_VALID][:, :2], dtype=torch.int64)
        return step, torch.ones_like(step, dtype=torch.float64)


class SaysNested(Selector):
    """Takes the middle of a row: a longer row has another one."""

    nested = True

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        valid = tensordict[STEP_VALID]
        return valid & (torch.arange(valid.shape[1]) == valid.sum(-1, keepdim=True) // 2)


class SelectsPastTheEnd(Selector):
    """Takes the last step of the longest row."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        valid = tensordict[STEP_VALID]
        return torch.arange(valid.shape[1]).expand_as(valid) == valid.sum(-1).max() - 1


class UsesGlobalRandomState(Selector):
    """Draws from torch's global generator."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict[STEP_VALID] & (torch.rand(tensordict[STEP_VALID].shape) < 0.5)


class UsesPythonRandomState(Selector):
    """Draws from Python's global generator."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict[STEP_VALID] & (torch.arange(tensordict[STEP_VALID].shape[1]) < random.randint(1, 9))


class LooksAtPlaceInBatch(Selector):
    """Keeps more steps of later rows."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        valid = tensordict[STEP_VALID]
        return valid & (torch.arange(valid.shape[1]) <= torch.arange(len(valid))[:, None])


class ReadsPadding(Selector):
    """Does not look where a row ends when it sums entropies."""

    def __init__(self) -> None:
        super().__init__(STEP_ENTROPY)

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        entropy = tensordict[STEP_ENTROPY]
        return (entropy >= entropy.mean(-1, keepdim=True)) & tensordict[STEP_VALID]


class Undocumented(Selector):
    """Keeps the first steps."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict[STEP_VALID] & (torch.arange(tensordict[STEP_VALID].shape[1]) < 2)


class UndocumentedError(Undocumented):
    """Keeps the first steps.

    Args:
        share: of what.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        if not share > 0:
            raise ValueError("no")


class OddError(Undocumented):
    """Keeps the first steps.

    Args:
        share: of what.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        assert share > 0


class WrongDtype(FirstK):
    """Writes float64 weights whatever comes in. Arguments as ``FirstK``."""

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        keys: Collection[Key] = (),
    ) -> TensorDictBase:
        super().forward(tensordict, keys=keys)
        return tensordict.set(SELECTED_WEIGHT, tensordict[SELECTED_WEIGHT].double())


class UnknownService(FirstK):
    """Wants what nobody has. Arguments as ``FirstK``."""

    requires = ("oracle",)


class RemembersCalls(FirstK):
    """Keeps another step each time. Arguments as ``FirstK``."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        RemembersCalls.calls = getattr(RemembersCalls, "calls", 0) + 1
        valid = tensordict[STEP_VALID]
        return valid & (torch.arange(valid.shape[1]) == RemembersCalls.calls % 2)


class SilentSelector(Selector):
    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict[STEP_VALID]


class MissesAnOutcome(RandomSteps):
    """Leaves the last outcome out. Arguments as ``RandomSteps``."""

    def outcomes(self, tensordict: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
        return super().outcomes(tensordict)[:-1]


class ForgetsPadding(FirstK):
    """Chooses the least probable actions, and forgets that rows end. Arguments as ``FirstK``."""

    def __init__(self, k: int = 2) -> None:
        super().__init__(k)
        self.in_keys = [*self.in_keys, STEP_LOG_PROB]

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return descending_rank(-tensordict[STEP_LOG_PROB], torch.ones_like(tensordict[STEP_VALID])) < self.k


class LeastProbable(ForgetsPadding):
    """Makes no mistake: the same without the padding, in the precision that comes in. Arguments as ``FirstK``."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        valid = tensordict[STEP_VALID]
        return (descending_rank(-tensordict[STEP_LOG_PROB], valid) < self.k) & valid
