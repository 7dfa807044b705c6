"""The work that processes do in an update, counted, is what the paper model says; balancing makes them wait less."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

import pytest
from support.paths import ROOT
from support.several import Pool

from dlmrl_kit.core.processes import Processes
from dlmrl_kit.training.cluster import Cluster
from dlmrl_kit.training.dry_run import job_of

sys.path.insert(0, str(ROOT / "benchmarks"))

import scaling

EVEN = {"whole weights": (6, "none"), "sharded weights": (4, "full")}


def even(processes: Processes, prompts: int, sharding: str) -> list[list[scaling.Load]]:
    """In a process of the pool, which imports this module."""
    return scaling.loads(processes, scaling.even(prompts, sharding).build_algorithm())


@pytest.mark.thorough
@pytest.mark.parametrize("label", EVEN)
def test_counts_are_those_on_paper(label: str, pool: Pool) -> None:
    """Forwards, states and tokens of the busiest process, bytes by collective, and the share of waiting, exactly."""
    prompts, sharding = EVEN[label]
    recipe = scaling.even(prompts, sharding)
    for world, answers in pool.run(even, prompts, sharding).items():
        assert answers == [answers[0]] * world
        (update,) = scaling.by_update(answers[0])
        paper = scaling.on_paper(recipe, world)
        for what in ("forwards", "states", "tokens"):
            assert scaling.busiest(update, what) == {phase: part[what] for phase, part in paper.work.items()}
        for load in update:
            assert {kind: size for kind, size in load.sent.items() if kind != "objects"} == paper.sent
        if sharding == "none":  # with sharded weights processes with nothing to do keep in step
            assert sum(load.work["rollout"]["states"] for load in update) == prompts * scaling.GROUP * 8
            idle = job_of(recipe, Cluster(world)).idle
            for phase in paper.work:
                assert scaling.waiting(update, "tokens", phase) == pytest.approx(idle, abs=1e-12)


def uneven(processes: Processes, model: str, assignment: str) -> list[list[scaling.Load]]:
    """In a process of the pool."""
    return scaling.loads(processes, scaling.uneven(Path(model), assignment, rollouts=2))


@pytest.mark.thorough
def test_completions_of_uneven_lengths(pool: Pool, tmp_path: Path) -> None:
    """Shared out by length, processes do the same work together and wait less; how much, the CPU's rounding says."""
    scaling.trained_model(tmp_path / "model", steps=80)
    tokens, idle = {}, {}
    for assignment in scaling.ASSIGNMENTS:
        updates = scaling.by_update(pool.run(uneven, str(tmp_path / "model"), assignment, worlds=(3,))[3][0])
        tokens[assignment] = [sum(load.work["rollout"]["tokens"] for load in update) for update in updates]
        idle[assignment] = fmean(scaling.waiting(update, "tokens") for update in updates)
    assert tokens["by_length"] == pytest.approx(tokens["in_turn"], rel=0.01)  # rounding may turn a draw
    assert 0 < idle["by_length"] < 0.9 * idle["in_turn"]
