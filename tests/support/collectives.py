"""Counts the bytes that collectives are about, in an update as it runs and on paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.training.exchange import exchange, passes
from dlmrl_kit.training.sharded_memory import settings_of
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update

KINDS: Mapping[str, tuple[str, int]] = {
    "c10d::allreduce_": ("all-reduce", 0),
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
}
"""Collectives of tensors: what they are called, and which of their arguments has the payload of all processes."""


class Collectives(TorchDispatchMode):
    """Adds up the payloads of the collectives that run within it, in bytes, by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.payloads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and counts it if it is a collective of tensors; objects travel as bytes, uint8."""
        kind = KINDS.get(func._schema.name)
        if kind is not None:
            name, index = kind
            tensors = args[index] if isinstance(args[index], list) else [args[index]]
            size = sum(t.numel() * t.element_size() for t in tensors if t.is_floating_point())
            if size:
                self.payloads[name] += size
        return func(*args, **(kwargs or {}))


def payloads(processes: Processes, algorithm: Algorithm) -> tuple[dict[str, int], dict[str, int]]:
    """Takes two updates; returns the payloads of the second one, in bytes by kind, as they were and on paper."""
    trainer = algorithm.trainer
    started = start_training(algorithm, processes)
    whole = algorithm.policy.load()  # of the sizes that the parameters have before they are cut
    count = passes(algorithm, started.plan, processes.world)
    paper = exchange(started.plan, whole, processes.world, count, trainer.sharding, settings_of(trainer))
    update = Update(algorithm, *started, processes=processes)
    update(0)  # the check before the first update is not part of the algorithm
    with Collectives() as found:
        update(1)
    expected = {"all-reduce": paper.reduced, "all-gather": paper.gathered, "reduce-scatter": paper.scattered}
    return dict(found.payloads), {name: int(size) for name, size in expected.items() if size}
