"""Whole runs of several processes: one folder, one voice, resumed by as many or by others, ended together."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.runs import build, leftovers, model_path, new_run, outcome, recipe, stopped
from support.several import Pool
from torch import nn

import dlmrl_kit.core.processes
from dlmrl_kit.core.errors import CheckpointError, NotFiniteError, StoppedError, TrainingError, UserError
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.results import EvalResult, RunObserver
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.evaluation import evaluate
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.runs import resume, train
from dlmrl_kit.training.shared_gradients import add_up

SETS = ["Trainer.learning_rate = 1e-4", "Trainer.prompts_per_update = 4", "Trainer.updates = 4"]
TIMES = ("seconds", "cpu_seconds", "tokens_per_second")


class Heard(RunObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_message(self, text: str) -> None:
        self.told.append(text)

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        self.told.append(f"update {update}")


def exchange(processes: Processes) -> dict[str, Any]:
    """What processes tell each other; a tiny bucket, so that tensors are cut and put together."""
    dlmrl_kit.core.processes.BUCKET = 3
    rank, world = processes.rank, processes.world
    tensors = [torch.full((2, 2), float(rank)), torch.arange(7.0) + rank, torch.tensor([1.0 + rank]).double()]
    processes.add_up(tensors)
    first = [torch.full((5,), float(rank + 1)), torch.tensor(rank)]
    processes.copy_first(first)
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    if rank == world - 1:
        parameters[0].grad = torch.ones(2)
    parameters[1].grad = torch.full((2,), float(rank + 1))
    add_up(parameters, processes)
    return {
        "sums": [tensor.flatten().tolist() for tensor in tensors],
        "first": [tensor.tolist() for tensor in first],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in parameters],
        "gathered": processes.gather((rank, "x" * rank)),
        "of first": processes.of_first(lambda: f"from {rank}"),
        "name": processes.name,
    }


def test_what_processes_tell_each_other(pool: Pool) -> None:
    for world, answers in pool.run(exchange).items():
        ranks = range(world)
        total = float(sum(ranks))
        for rank, found in enumerate(answers):
            assert found == {
                "sums": [[total] * 4, [world * i + total for i in range(7)], [world + total]],
                "first": [[1.0] * 5, 0],
                "gradients": [[1.0, 1.0], [world + total] * 2, None],
                "gathered": [(r, "x" * r) for r in ranks],
                "of first": "from 0",
                "name": f"rank {rank}: " if rank else "",
            }


def whole(processes: Processes, folder: str) -> tuple[list[str], dict[str, Any]]:
    """Trains a run of its own for each number of processes; what the observer heard, and the result."""
    observer = Heard()
    result = train(recipe(sets=SETS), Path(folder) / str(processes.world), observer=observer, processes=processes)
    return observer.told, result.after.to_json()


@pytest.mark.thorough
def test_a_run_is_that_of_one_process(pool: Pool, tmp_path: Path) -> None:
    found = pool.run(whole, str(tmp_path))
    one = tmp_path / "1"
    files = sorted(str(path.relative_to(one)) for path in one.rglob("*"))
    expected = read_metrics(one)
    for world in (2, 3):
        folder = tmp_path / str(world)
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == files
        assert not leftovers(folder)
        heard = [told for told, _ in found[world]]
        assert heard[0][1:] == found[1][0][0][1:]  # but for the difference between old and new log-probabilities
        assert heard[1:] == [[]] * (world - 1)
        assert [after for _, after in found[world]] == [found[1][0][1]] * world
        metrics = read_metrics(folder)
        assert metrics.keys() == expected.keys()
        for name, rows in metrics.items():
            if name not in TIMES:
                assert [u for u, _ in rows] == [u for u, _ in expected[name]]
                assert [v for _, v in rows] == pytest.approx([v for _, v in expected[name]], rel=1e-4, abs=1e-5), name
        model, other = (load_file(path / "model" / "model.safetensors") for path in (folder, one))
        for name, value in model.items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=1e-5)
        about = json.loads((folder / "run.json").read_text())
        assert about["identity"]["machine"]["processes"] == str(world)


def started(processes: Processes, folder: str, at: int) -> None:
    """Starts a run that ends without a word before update ``at``."""
    stopped(lambda: train(recipe(sets=SETS), Path(folder), processes=processes), at)
    processes.gather(None)  # the first one may still write


def resumed(processes: Processes, folder: str) -> None:
    observer = Heard()
    resume(Path(folder) if processes.world > 1 else Path(f"{folder}-1"), observer=observer, processes=processes)


@pytest.mark.thorough
def test_a_run_goes_on_with_as_many_processes_or_others(pool: Pool, tmp_path: Path) -> None:
    pool.run(whole, str(tmp_path), worlds=(2,))
    pool.run(started, str(tmp_path / "half"), 2, worlds=(2,))
    assert [done for done, _ in checkpoints(tmp_path / "half")] == [1, 2]
    for copy in ("half-1", "three"):
        shutil.copytree(tmp_path / "half", tmp_path / copy)
    pool.run(resumed, str(tmp_path / "half"), worlds=(1, 2))
    pool.run(resumed, str(tmp_path / "three"), worlds=(3,))
    assert outcome(tmp_path / "half") == outcome(tmp_path / "2")  # bit for bit
    expected = load_file(tmp_path / "2" / "model" / "model.safetensors")
    for name, now in {"half-1": 1, "three": 3}.items():
        for key, value in load_file(tmp_path / name / "model" / "model.safetensors").items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-5)
        (entry,) = json.loads((tmp_path / name / "run.json").read_text())["changes"]
        assert (entry["update"], entry["changed"]) == (2, [f"processes were 2, now {now}"])


def stop(processes: Processes, folder: str, whom: list[int]) -> str:
    """SIGTERM comes to some processes in update 1; what is raised, and the checkpoints there are then."""
    path = Path(folder) / str(processes.world)
    original = Run.step

    def step(self: Run, number: int) -> None:
        original(self, number)
        if number == 1 and processes.rank in whom:
            os.kill(os.getpid(), signal.SIGTERM)

    Run.step = step  # type: ignore[method-assign]
    try:
        train(recipe(sets=[*SETS, "Trainer.checkpoint_every = 100"]), path, processes=processes)
    except StoppedError as error:
        return str(error).replace(folder, "")
    finally:
        Run.step = original  # type: ignore[method-assign]
    return "not stopped"


def stopped_at_two(answers: list[str], folder: Path) -> None:
    go_on = f"go on with: dlmrl train --resume /{len(answers)}"
    assert answers == [f"stopped by SIGTERM with 2 of 4 updates done; {go_on}"] * len(answers)
    assert [done for done, _ in checkpoints(folder / str(len(answers)))] == [2]
    assert "failed_start" not in json.loads((folder / str(len(answers)) / "run.json").read_text())


def test_sigterm_writes_a_checkpoint(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stopped_at_two([stop(ALONE, str(tmp_path), [0])], tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.thorough
@pytest.mark.parametrize("whom", [[0, 1, 2], [1]], ids=["all", "one"])
def test_sigterm_stops_all(whom: list[int], pool: Pool, tmp_path: Path) -> None:
    stopped_at_two(pool.run(stop, str(tmp_path), whom, worlds=(3,))[3], tmp_path)


def failures(processes: Processes, folder: str) -> list[tuple[str, str]]:
    """Errors that only one process can find, or only all together: each must raise the same."""
    found = []
    path = Path(folder) / str(processes.world)

    def note(call: Any, *arguments: Any, **named: Any) -> None:
        try:
            call(*arguments, **named)
        except UserError as error:
            found.append((type(error).__name__, str(error)))

    def refuse() -> None:
        raise CheckpointError("only the first one sees it")

    note(processes.of_first, refuse)
    if processes.is_first:
        path.mkdir()
        (path / "recipe.gin").write_text("")
    note(train, recipe(sets=SETS), path, processes=processes)

    run = new_run(path, sets=[*SETS, "Trainer.max_skipped = 2"], processes=processes)
    last = processes.rank == processes.world - 1
    if last:  # what this process computes differs from what its sampler recorded
        original = run.update.log_probs.run

        def shifted(*arguments: Any, **named: Any) -> Any:
            batch = original(*arguments, **named)
            return batch.set(("selected", "log_prob"), batch["selected", "log_prob"] + 1)

        run.update.log_probs.run = shifted  # type: ignore[method-assign]
    note(run.update, 0)

    run = new_run(path, sets=[*SETS, "Trainer.max_skipped = 2"], processes=processes)
    before = torch.cat([p.detach().reshape(-1) for p in run.parameters.values()])
    if last:  # one process's loss is not finite
        loss = run.algorithm.loss.total
        run.algorithm.loss.total = lambda batch: (loss(batch)[0] * torch.nan, loss(batch)[1])  # type: ignore[method-assign]
    note(run.update, 0)
    assert torch.equal(before, torch.cat([p.detach().reshape(-1) for p in run.parameters.values()]))
    return found


@pytest.mark.thorough
def test_an_error_in_one_process_is_raised_in_all(pool: Pool, tmp_path: Path) -> None:
    for world, answers in pool.run(failures, str(tmp_path)).items():
        kinds = [CheckpointError, CheckpointError, TrainingError, NotFiniteError]
        assert [kind for kind, _ in answers[0]] == [kind.__name__ for kind in kinds], answers
        assert answers == [answers[0]] * world
        assert "old and new log-probabilities disagree" in answers[0][2][1]
        assert "2 optimiser steps in a row" in answers[0][3][1]


def evaluation(processes: Processes, size: int, samples: int) -> EvalResult:
    algorithm = build()
    policy = algorithm.policy.load()
    return evaluate(
        policy,
        algorithm.sampler,
        algorithm.task,
        size=size,
        temperature=1.0 if samples > 1 else 0.0,
        samples_per_prompt=samples,
        processes=processes,
    )


@pytest.mark.parametrize(("size", "samples"), [(5, 1), (4, 3), (1, 2)])
def test_an_evaluation_is_shared_out(size: int, samples: int, pool: Pool) -> None:
    assert Path(model_path()).is_dir()
    found = pool.run(evaluation, size, samples)
    (expected,) = found[1]
    assert expected.size == size
    for world in (2, 3):
        assert found[world] == [expected] * world
