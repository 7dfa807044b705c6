"""Steps drawn with replacement: k of each row, from a distribution over its steps that a subclass gives."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import SEED, STEP_VALID
from dlmrl_kit.core.seeding import seeds_of, uniforms
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import LISTED_DRAWS, Selector


class DrawnSteps(Selector):
    """Base class of selectors that draw k steps of each row with replacement.

    Args:
        k: draws per row, whatever its number of steps.

    Writes ``("selected", "step")`` int64 [B, k], steps may repeat, and ``("selected", "weight")`` [B, k].

    Raises:
        ValueError: a value out of range.
    """

    with_replacement = True
    purpose: ClassVar[str]
    """What the noise is for: selectors of the same seed draw different numbers."""

    def __init__(self, k: int) -> None:
        super().__init__(SEED)
        check(isinstance(k, int) and k >= 1, self, "k", k, "an integer, at least 1")
        self.k = k

    def resized(self, before: Sizes, after: Sizes) -> DrawnSteps:
        """Draws the same share of the steps, two at most: more have the same mean, but too many outcomes to list."""
        return rebuilt(self, k=min(before.scale_steps(self.k, after), LISTED_DRAWS))

    @abstractmethod
    def probabilities(self, tensordict: TensorDictBase) -> Tensor:
        """Returns q_t, float64 [B, T]; 0 past the end of a row."""

    def importance(self, q: Tensor, step: Tensor) -> Tensor:
        """Returns the weights of the drawn steps, float64 [B, k], here 1 / k."""
        return torch.full(step.shape, 1 / self.k, dtype=torch.float64, device=step.device)

    def choose(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Draws by inverting the cumulative distribution with float64 noise."""
        valid, q = tensordict[STEP_VALID], self.probabilities(tensordict)
        noise = uniforms(seeds_of(tensordict, self), self.k, purpose=self.purpose)
        step = torch.searchsorted(q.cumsum(-1), noise.sort(-1).values, right=True)
        step = torch.minimum(step, valid.sum(-1, keepdim=True) - 1)
        return step, self.importance(q, step)

    def outcomes(self, tensordict: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Lists all multisets of k steps, in ascending order, with their multinomial probabilities."""
        q = self.probabilities(tensordict)
        found = []
        for drawn in itertools.combinations_with_replacement(range(q.shape[-1]), self.k):
            step = torch.tensor(drawn, device=q.device).expand(len(q), -1)
            times = torch.bincount(step[0], minlength=q.shape[-1]).to(q.dtype)
            orders = torch.exp((times.sum() + 1).lgamma() - (times + 1).lgamma().sum())
            probability = orders * q.gather(-1, step).prod(-1)
            possible = probability > 0
            step = torch.where(possible[:, None], step, 0)
            found.append((step, self.importance(q, step), probability))
        return found
