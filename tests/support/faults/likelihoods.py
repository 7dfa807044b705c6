"""Likelihoods with one mistake each."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_LOG_PROB
from dlmrl_kit.likelihoods.steps import Replay, StepLogProb
from dlmrl_kit.samplers.base import token_log_prob


class NoPolicyGradient(StepLogProb):
    """Computes without gradients."""

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase, **services: Any) -> TensorDictBase:
        return super().forward(tensordict, **services)


class CentresOverBatch(StepLogProb):
    """Subtracts the mean of the batch."""

    def estimate(self, steps: Replay, policy: Any, sampler: Any, keys: Any = ()) -> dict[Any, Tensor]:
        found = super().estimate(steps, policy, sampler, keys)
        return {
            **found,
            SELECTED_LOG_PROB: found[SELECTED_LOG_PROB]
            - (found[SELECTED_LOG_PROB].mean() if len(found[SELECTED_LOG_PROB]) else 0),
        }


class ForgetsOrder(StepLogProb):
    """Records one quantity and computes another."""

    def estimate(self, steps: Replay, policy: Any, sampler: Any, keys: Any = ()) -> dict[Any, Tensor]:
        view = sampler.view(policy, steps.prompt, steps.ids)
        return {
            **super().estimate(steps, policy, sampler, keys),
            SELECTED_LOG_PROB: token_log_prob(view, steps.decision),
        }
