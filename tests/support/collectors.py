"""Collectors as plugins write them: in this process, with a copy of the policy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from support.runs import build
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.collectors.base import Collector, Sampling, Weights
from dlmrl_kit.collectors.replica import Replica
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.trajectory import cut, length_order, restored
from dlmrl_kit.samplers.base import Decision, View
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.training.loop import Run


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


class FailsElsewhere(LowConfidence):
    """Samples in the process of the run alone."""

    def decide(self, view: View, seed: Tensor) -> Decision:
        if "default_worker" in sys.argv[0]:  # that of Ray's workers
            raise ValueError("not here")
        return super().decide(view, seed)


def updates(
    folder: Path,
    name: str = "egspo_sa",
    sets: Iterable[str] = (),
    uses: Iterable[str] = (),
    *,
    number: int = 3,
    after: Callable[[int], None] = lambda update: None,
    processes: Processes = ALONE,
) -> tuple[list[dict[str, float]], Tensor]:
    """Takes a few updates of a tiny recipe; returns their metrics and the weights, those of the sampler included."""
    algorithm = build(name, [f"Trainer.updates = {number}", *sets], uses)
    run = Run(algorithm, folder, name, RunObserver(), processes)
    metrics = []
    with run.update.opened():
        for update in range(number):
            metrics.append(run.update(update))
            after(update)
    return metrics, torch.cat([parameter.detach().reshape(-1) for parameter in run.parameters.values()])


ELSEWHERE = ("rollout/updates_behind", "recorded_difference_max", "forwards/rollout", "forwards/tokens")
"""The metrics that only a run with a collector has."""


def same(found: tuple[list[dict[str, float]], Tensor], wanted: tuple[list[dict[str, float]], Tensor]) -> bool:
    """Whether two runs are the same bit for bit, but for the metrics that only a collector has."""
    here, there = ([{k: v for k, v in row.items() if k not in ELSEWHERE} for row in run[0]] for run in (found, wanted))
    return str(here) == str(there) and torch.equal(found[1], wanted[1])


def kept(processes: Processes, folder: str, sets: list[str], uses: list[str]) -> list[str]:
    """What a checkpoint of several processes keeps of the rollout under way; each gets its own samples back."""
    first, second = (
        Run(build("egspo_sa", sets, uses), Path(folder), "egspo_sa", RunObserver(), processes) for _ in range(2)
    )
    with first.update.opened(), second.update.opened():
        first.update(0)
        ahead = first.update.rollouts_ahead()
        second.update.restore(first.update.counters(), ahead)
        assert first.update.collecting is not None
        assert second.update.collecting is not None
        (own, _), (found, behind) = first.update.collecting.take(1), second.update.collecting.take(1)
    assert behind == 1
    assert len(own) == len(found)
    for key in own.keys(True, True) if len(own) else ():
        assert torch.equal(own[key], found[key]), key
    return sorted(f"{key} {value.double().sum().item():.9g}" for key, value in ahead.items())
