"""Predicts one number, the same for every token."""

from __future__ import annotations

import torch
from dlmrl_kit import register
from dlmrl_kit.core.keys import SELECTED_END, SELECTED_VALUE
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.values.base import Value, segment_tokens
from tensordict import TensorDictBase
from torch import nn


@register("value")
class AcmeValue(Value):
    """Learns the mean return: one number for every token of every state.

    Reads the trajectory and the selection with ``("selected", "end")``. Writes ``("selected", "value")`` [B, K, L] by
    position, 0 where no token is.
    """

    mean: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [*self.in_keys, SELECTED_END]
        self.register_parameter("mean", None)

    def attach(self, policy: Policy) -> None:
        """Creates the number, 0, if there is none yet."""
        if self.mean is None:
            self.mean = nn.Parameter(torch.zeros((), device=policy.device, dtype=policy.real_dtype))

    def forward(self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler) -> TensorDictBase:
        """Writes the values."""
        self.attach(policy)
        assert self.mean is not None
        tokens = segment_tokens(tensordict, policy, after_eos=False)
        return tensordict.set(SELECTED_VALUE, tokens * self.mean)
