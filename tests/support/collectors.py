"""Collectors as plugins write them: in this process, with a copy of the policy."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

from dlmrl_kit.collectors.base import Collector, Sampling, Weights
from dlmrl_kit.collectors.replica import Replica
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import cut, length_order, restored


@register("collector")
class Here(Collector):
    """Samples in this process with a copy of the policy, in pieces as without a collector."""

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.seen: list[int] = []

    def open(self, sampling: Sampling, policy: Policy, processes: Processes) -> None:
        self.replica = Replica(sampling, torch.device("cpu"))

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        assert self.replica is not None
        self.seen.append(version)
        size = self.replica.sampling.batch_size or len(prompts)
        rows, pieces = zip(*cut(prompts, size, length_order(prompts, size)), strict=True)
        return restored([self.replica.sample(piece, weights, version) for piece in pieces], [*rows])

    def close(self) -> None:
        self.replica = None
