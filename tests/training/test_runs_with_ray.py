"""Runs whose rollouts actors of Ray sample: two processes with actors of their own, SIGTERM, and the run after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.collectors import ELSEWHERE, same, updates
from support.paths import ROOT
from support.ray_cluster import local_cluster, losing
from support.runs import outcome, recipe
from support.several import Pool

from dlmrl_kit.core.processes import Processes
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.runs import resume, train

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.thorough

SETS = ["Trainer.prompts_per_update = 3", "Trainer.rollout_batch_size = 1", "Trainer.learning_rate = 1e-4"]
RAY = ["collector=Ray"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_cluster() as address:
        yield address


def plain(processes: Processes) -> tuple[list[dict[str, float]], torch.Tensor]:
    return updates(Path(), sets=SETS, processes=processes)


def with_actors(processes: Processes, address: str) -> tuple[list[dict[str, float]], torch.Tensor, int]:
    """The run with an actor for each process, of which that of the last process is killed in the second update."""
    due, killed = list[bool](), list[int]()
    last = processes.rank == processes.world - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", address)
        patch.setattr(ray.util, "ActorPool", losing(due, killed))
        found = updates(
            Path(), sets=SETS, uses=RAY, after=lambda update: due.extend([True] * last), processes=processes
        )
    return *found, len(killed)


def test_two_processes_with_an_actor_each(cluster: str, pool: Pool) -> None:
    """Bit for bit they are two processes without Ray, and up to rounding one process, though an actor dies."""
    alone, together = (pool.run(plain, worlds=(world,))[world] for world in (1, 2))
    found = pool.run(with_actors, cluster, worlds=(2,))[2]
    assert [killed for _, _, killed in found] == [0, 1]
    for (metrics, weights, _), wanted in zip(found, together, strict=True):
        assert same((metrics, weights), wanted)
        torch.testing.assert_close(weights, alone[0][1], rtol=0, atol=1e-5)
        for update, expected in zip(metrics, alone[0][0], strict=True):
            shared = {name: value for name, value in update.items() if name not in ELSEWHERE}
            assert shared == pytest.approx({name: expected[name] for name in shared}, rel=1e-4, abs=1e-5)


def test_sigterm_and_the_run_after_it(cluster: str, tmp_path: Path) -> None:
    """The command ends with 75 and a checkpoint; resumed, the run ends as if nothing had happened, bit for bit."""
    sets = [*SETS, "Trainer.updates = 10", "Trainer.eval_every = 0", "Trainer.eval_size = 2", "Ray.actors = 1"]
    (tmp_path / "tiny.gin").write_text(recipe(sets=sets, uses=RAY).text())
    train(load_recipe(tmp_path / "tiny.gin"), tmp_path / "whole")
    half = tmp_path / "half"
    environment = {**os.environ, "RAY_ADDRESS": cluster, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dlmrl_kit", "train", str(tmp_path / "tiny.gin"), "--out", str(half)]
    job = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    until = time.monotonic() + 240
    while not checkpoints(half) and job.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    job.send_signal(signal.SIGTERM)
    told = job.communicate(timeout=120)[0]
    assert job.returncode == 75, told
    assert "stopped by SIGTERM" in told
    ((done, _), *_) = reversed(checkpoints(half))
    assert 0 < done < 10
    assert not (half / "result.json").exists()
    resume(half)
    assert outcome(half) == outcome(tmp_path / "whole")
