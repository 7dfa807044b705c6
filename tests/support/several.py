"""Three processes that talk by Gloo and live as long as a test module: cases run in them, in three, two or one."""

from __future__ import annotations

import math
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import support.runs
import torch
import torch.distributed as dist
from support.processes import context
from support.runs import model_path, new_run

from dlmrl_kit.core.processes import ALONE, Processes, Several

WORLD = 3
SECONDS = 200
"""After which a process hangs, also on a machine that does much else; cases with Ray took 95 there."""
Case = Callable[..., Any]
Given = tuple[str, list[str], list[str]]
"""A recipe, settings of it, and swaps."""


def serve(rank: int, store: str, model: str, orders: Connection) -> None:
    """Runs cases that come through the pipe until it is closed; answers with what they return, or their traceback."""
    torch.set_num_threads(1)
    support.runs.model_path = lambda: model  # type: ignore[assignment]
    shared = dist.FileStore(store, WORLD)
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=WORLD, timeout=timedelta(seconds=SECONDS))
    groups = {2: dist.new_group([0, 1]), 3: dist.new_group([0, 1, 2])}
    while True:
        try:
            number, world, case, arguments = orders.recv()
        except EOFError:
            return
        processes = (
            ALONE if world == 1 else Several(rank, world, dist.PrefixStore(f"case {number}", shared), groups[world])
        )
        try:
            orders.send((number, case(processes, *arguments), None))
        except Exception:
            orders.send((number, None, traceback.format_exc()))


class Pool:
    """The three processes.

    Args:
        folder: empty.
    """

    def __init__(self, folder: Path) -> None:
        self.pipes, self.number = [], 0
        for rank in range(WORLD):
            ours, theirs = context().Pipe()
            context().Process(
                target=serve, args=(rank, str(folder / "store"), model_path(), theirs), daemon=True
            ).start()
            theirs.close()
            self.pipes.append(ours)

    def run(self, case: Case, *arguments: Any, worlds: tuple[int, ...] = (1, 2, 3)) -> dict[int, list[Any]]:
        """What ``case(processes, *arguments)`` returns in each process, by the number of processes."""
        return {world: self._ask(world, case, arguments) for world in worlds}

    def _ask(self, world: int, case: Case, arguments: tuple[Any, ...]) -> list[Any]:
        self.number += 1
        for rank in range(world):
            self.pipes[rank].send((self.number, world, case, arguments))
        answers = []
        for rank in range(world):
            answered = 0
            while answered != self.number:  # it may still answer a case that was given up
                assert self.pipes[rank].poll(SECONDS + 40), f"rank {rank} hangs"
                answered, *answer = self.pipes[rank].recv()
            answers.append(answer)
        failures = [failure for _, failure in answers if failure is not None]
        if failures:
            pytest.fail("\n".join(failures))
        return [answer for answer, _ in answers]

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self.pipes:
            pipe.close()


def updates(processes: Processes, given: Given, double: bool = True) -> tuple[list[dict[str, float]], torch.Tensor]:
    """The metrics of two updates, and all weights after them."""
    name, sets, uses = given
    if not any(binding.startswith("Trainer.prompts_per_update") for binding in sets):
        sets = [*sets, "Trainer.prompts_per_update = 4"]
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder), name, sets, uses, processes=processes)
        if double:
            run.policy.double()
            for component in run.algorithm.components:
                component.double()
        metrics = [run.update(number) for number in range(2)]
        return metrics, torch.cat([p.detach().reshape(-1) for p in run.parameters.values()])


def compare(found: dict[int, list[Any]], tolerance: float) -> list[dict[str, float]]:
    """Holds all processes to the single one; the metrics of that one."""
    metrics, weights = found[1][0]
    assert all(math.isfinite(value) for update in metrics for value in update.values())
    for world in found.keys() - {1}:
        assert len(found[world]) == world
        for own, others in found[world]:
            assert [update.keys() for update in own] == [update.keys() for update in metrics]
            for update, expected in zip(own, metrics, strict=True):
                assert update == pytest.approx(expected, rel=tolerance, abs=tolerance)
            torch.testing.assert_close(others, weights, rtol=0, atol=tolerance)
            assert torch.equal(others, found[world][0][1]), "processes must not drift apart"
    return metrics
