"""Samples with a copy of the policy in the same process."""

from __future__ import annotations

import torch
from dlmrl_kit import register
from dlmrl_kit.collectors.base import Collector, Sampling, Weights
from dlmrl_kit.collectors.replica import Replica
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import Processes
from tensordict import TensorDictBase


@register("collector")
class AcmeCollector(Collector):
    """Keeps a copy of the policy, gives it the weights of each update, and samples with it.

    Args:
        device: that the copy is on, as torch names it.

    Raises:
        UserError: the policy cannot be loaded there.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._replica: Replica | None = None

    def open(self, sampling: Sampling, policy: Policy, processes: Processes) -> None:
        """Loads the copy."""
        self._replica = Replica(sampling, torch.device(self.device))

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        """Samples a completion for every prompt."""
        if self._replica is None:
            raise RuntimeError("call open before collect")
        return self._replica.sample(prompts, weights, version)

    def close(self) -> None:
        """Lets go of the copy."""
        self._replica = None
