"""A plain value model, and value models with one mistake each."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_VALUE
from dlmrl_kit.likelihoods.steps import replay
from dlmrl_kit.values.base import Value


class PlainValue(Value):
    """A linear function of what is at each position before the step."""

    def attach(self, policy: Any) -> None:
        self.head = torch.nn.Linear(policy.vocab_size, 1)

    def summary(self, state: Tensor) -> Tensor:
        return self.head(state).squeeze(-1)

    def forward(self, tensordict: TensorDictBase, *, policy: Any, sampler: Any) -> TensorDictBase:
        steps = replay(tensordict, policy.mask_id)
        state = torch.nn.functional.one_hot(steps.ids, policy.vocab_size).to(next(policy.parameters()).dtype)
        return tensordict.set(
            SELECTED_VALUE, steps.scatter(torch.where(steps.decision.committed, self.summary(state), 0.0))
        )


class NoValueHead(PlainValue):
    """Has nothing to train."""

    def attach(self, policy: Any) -> None:
        pass

    def summary(self, state: Tensor) -> Tensor:
        return state[..., 0].clone().requires_grad_()


class SharesThePolicy(PlainValue):
    """Trains the policy's weights as its own."""

    def attach(self, policy: Any) -> None:
        super().attach(policy)
        self.theirs = policy


class ValueWithoutGradient(PlainValue):
    """Detaches its values."""

    def summary(self, state: Tensor) -> Tensor:
        return super().summary(state).detach()


class CentresValues(PlainValue):
    """Subtracts the sum over the batch."""

    def summary(self, state: Tensor) -> Tensor:
        found = super().summary(state)
        return found - found.sum()
