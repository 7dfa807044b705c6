"""Ablations whose runs only write what a run leaves behind, and runs that are done in this process."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dlmrl_kit.experiments.runs as scheduling
from dlmrl_kit.experiments import make_design
from dlmrl_kit.experiments.design import Design
from dlmrl_kit.experiments.run_processes import Launcher
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import train

FAKE_RUN = """
import json, os, pathlib, sys, time
task = json.loads(sys.stdin.readline())
folder = pathlib.Path(task["folder"])
name = folder.parent.name + "/" + folder.name
with (folder / "attempts").open("a") as file:
    file.write(os.environ["OMP_NUM_THREADS"])
(folder / "recipe.gin").write_text("# header" + chr(10) * 2 + task["text"])
case = os.environ.get("FAKE_" + name.replace("/", "_").replace("-", "_"), "")
if case == "fails":
    print("a message of the run")
    (folder / "failed.json").write_text(json.dumps({"error": "the loss is not finite"}))
    sys.exit(1)
if case == "dies":
    os.kill(os.getpid(), 9)
if case == "hangs":
    while os.read(0, 1):
        pass
    sys.exit(1)
seed = int(folder.name.split("-")[1])
bonus = {"base": 0, "selector-UniformSteps": 1, "selector-FirstK": -1}[folder.parent.name]
bonus = 0 if case == "base" else bonus
after = (40 + 2 * seed ** 2 + bonus * (1 + seed % 2)) / 100
fixed = {"split": "heldout", "size": 50, "reward": 0.5, "components": {"c": 0.25}}
entry = lambda accuracy: {**fixed, "accuracy": accuracy}
rows = [(u, m, v) for u in range(20) for m, v in (("reward", after + u / 100 + seed / 50), ("seconds", time.time()))]
rows += [(0, "eval/accuracy", 0.4), (20, "eval/accuracy", after)]
(folder / "metrics.csv").write_text("".join("%s,%s,%s\\n" % row for row in [("update", "metric", "value"), *rows]))
(folder / "evaluations.json").write_text(json.dumps({"0": entry(0.4), "20": entry(after)}))
(folder / "result.json").write_text(json.dumps({"updates": 20, "before": entry(0.4), "after": entry(after)}))
"""
SWAPS = ["selector=UniformSteps,FirstK"]


def launcher_of(program: str) -> Callable[..., Launcher]:
    """What starts runs that are a program of the standard library, for ``new_launcher``."""
    return lambda threads, *_, **__: Launcher(threads, (sys.executable, "-I", "-S", "-c", program))


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "new_launcher", launcher_of(FAKE_RUN))
    monkeypatch.setattr(scheduling, "_POLL_SECONDS", 0.01)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("dlmrl_kit.experiments.folder.uses_gpu", lambda _: False)


fake = pytest.mark.usefixtures("fake_runs")


def design(swaps: list[str] | None = None, seeds: int = 3, recipe: str = "egspo", **options: Any) -> Design:
    options.setdefault("sets", ["Trainer.updates=20"])
    return make_design(recipe, swaps or SWAPS, seeds=seeds, **options)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def plain_runs(scheduler: scheduling.Scheduler, jobs: list[scheduling.Job]) -> None:
    """What ``dlmrl train`` does for each run, in this process; for ``Scheduler.run``."""
    for job in jobs:
        source = scheduling.recipe_file(scheduler.folder, job.variant)
        train(load_recipe(source, sets=[f"{job.variant.seed_key}={job.seed}"]), job.folder)
        job.status = "finished"
        scheduler.ended(job)
