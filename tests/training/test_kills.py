"""Runs that die: killed at any write and at any moment they end bit by bit as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import dlmrl
from support.processes import killed, process, spread, train_file
from support.runs import leftovers, outcome

from dlmrl_kit.core.results import RunResult
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import resume, train
from dlmrl_kit.training.checkpoint import checkpoints

KILLS = 6


def finish(folder: Path, gin_file: Path) -> RunResult:
    """What a user does after a kill: resumes; starts again where there is nothing to resume yet."""
    if (folder / "recipe.gin").exists():
        return resume(folder)
    return train(load_recipe(gin_file), folder)


def test_the_uninterrupted_run_is_whole(whole: Path) -> None:
    expected = {"recipe.gin", "run.json", "metrics.csv", "evaluations.json", "result.json", "curve.png", "model"}
    expected |= {"checkpoints", "steps.jsonl", "completions.jsonl"}
    assert {path.name for path in whole.iterdir()} == expected
    assert [done for done, _ in checkpoints(whole)] == [4, 5]
    evaluations = json.loads((whole / "evaluations.json").read_text())
    assert list(evaluations) == ["0", "2", "4", "5"]
    metrics = read_metrics(whole)
    assert [update for update, _ in metrics["loss"]] == [0, 1, 2, 3, 4]
    assert metrics["eval/accuracy"] == [(int(u), entry["accuracy"]) for u, entry in evaluations.items()]
    assert any(value != 0 for _, value in metrics["grad_norm"])
    result = json.loads((whole / "result.json").read_text())
    assert (result["before"], result["after"]) == (evaluations["0"], evaluations["5"])
    model, last = (
        load_file(whole / "model/model.safetensors"),
        load_file(checkpoints(whole)[-1][1] / "weights.safetensors"),
    )
    for name, value in model.items():
        assert torch.equal(value, last[name]), name


def total_writes(whole: Path) -> int:
    return int((whole.parent / "writes").read_text())


def killed_at_write(number: int, gin_file: Path, folder: Path) -> None:
    child = process(train_file, gin_file, folder, number)
    child.join()
    assert killed(child.exitcode), f"not killed at write {number}: exit code {child.exitcode}"


@pytest.mark.thorough
@pytest.mark.parametrize("part", range(KILLS))
def test_killed_at_a_write(part: int, gin_file: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed_at_write(list(spread(total_writes(whole), KILLS))[part], gin_file, folder)
    finish(folder, gin_file)
    assert outcome(folder) == outcome(whole)


@pytest.mark.slow
def test_killed_at_every_write(gin_file: Path, whole: Path, tmp_path: Path) -> None:
    for number in range(1, total_writes(whole) + 1):
        folder = tmp_path / str(number)
        killed_at_write(number, gin_file, folder)
        finish(folder, gin_file)
        assert outcome(folder) == outcome(whole), f"killed at write {number}"
        assert [name for name in leftovers(folder) if (folder / name).is_dir()] == [], f"killed at write {number}"


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_again_and_again(seed: int, gin_file: Path, whole: Path, tmp_path: Path) -> None:
    folder, delays = tmp_path / "run", random.Random(seed)
    for _ in range(2):
        child = process(train_file, gin_file, folder, 0)
        while child.is_alive() and not (folder / "recipe.gin").exists():
            time.sleep(0.005)
        child.join(delays.uniform(0, 0.6))
        child.kill()
        child.join()
    finish(folder, gin_file)
    assert outcome(folder) == outcome(whole)


@pytest.mark.thorough
def test_the_command_line_resumes_what_was_killed(gin_file: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", "from dlmrl_kit.cli.app import main; main()", "train"]
    options: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, str(gin_file), "--out", str(folder)], **options) as first:
        deadline = time.monotonic() + 120
        while not checkpoints(folder) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        first.send_signal(signal.SIGKILL)
    assert killed(first.returncode)
    second = dlmrl("train", "--resume", str(folder))
    assert second.exit_code == 0, second.output
    assert "resumed after update" in second.stdout
    assert outcome(folder) == outcome(whole)
