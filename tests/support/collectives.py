"""The bytes that collectives are about, in an update as it runs and on paper."""

from __future__ import annotations

import sys

from support.paths import ROOT

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.training.exchange import exchange, passes
from dlmrl_kit.training.sharded_memory import settings_of
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update

sys.path.insert(0, str(ROOT / "benchmarks"))

from counting import Collectives


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
    del found.payloads["objects"]
    return dict(found.payloads), {name: int(size) for name, size in expected.items() if size}
