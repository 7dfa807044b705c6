"""Outcomes of comparisons that were not run, and comparisons whose runs only write what a run leaves behind."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from support.fake_runs import launcher_of
from typer.testing import CliRunner

import dlmrl_kit.experiments.runs as scheduling
from dlmrl_kit.cli.app import app
from dlmrl_kit.experiments.referee.outcomes import Outcome, Point
from dlmrl_kit.experiments.referee.records import RUNS, Records
from dlmrl_kit.experiments.referee.run import CompareObserver
from dlmrl_kit.experiments.referee.spec import Spec
from dlmrl_kit.experiments.runs import Job

FAKE_RUN = """
import json, os, pathlib, sys
task = json.loads(sys.stdin.readline())
folder = pathlib.Path(task["folder"])
name = folder.parent.name + "/" + folder.name
with (folder / "attempts").open("a") as file:
    file.write("x")
(folder / "recipe.gin").write_text("# header" + chr(10) * 2 + task["text"])
for weights in ("checkpoints", "best", "model", "adapter", "best_model", "best_adapter"):
    (folder / weights).mkdir(exist_ok=True)
    (folder / weights / "weights").write_text("weights")
if name in os.environ.get("FAILS", "").split():
    (folder / "failed.json").write_text(json.dumps({"error": "the loss is not finite"}))
    sys.exit(1)
lines = [line.split("#")[0].partition(" = ") for line in task["text"].splitlines()]
settings = {name: value for name, _, value in lines}
updates, rate = int(settings["Trainer.updates"]), float(settings["Trainer.learning_rate"])
seed = int(folder.name.split("-")[1])
gain = 0.2 + 0.1 * ("egspo_sa" in name) + 0.05 * (rate < 2e-4) + 0.01 * seed ** 2
fixed = {"split": "heldout", "size": 50, "reward": 0.5, "components": {}}
ends = {0: 0.4, updates // 2: 0.4 + gain / 2, updates: 0.4 + gain}
rows = [(u, m, v) for u in range(updates) for m, v in
        (("forwards/rollout", 60), ("forwards/update", 40), ("forwards/tokens", 3300), ("cpu_seconds", 0.5))]
(folder / "metrics.csv").write_text("".join("%s,%s,%s\\n" % row for row in [("update", "metric", "value"), *rows]))
for file in ("evaluations.json", "validations.json"):
    (folder / file).write_text(json.dumps({u: {**fixed, "accuracy": a} for u, a in ends.items()}))
entry = lambda accuracy: {**fixed, "accuracy": accuracy}
(folder / "result.json").write_text(json.dumps({"updates": updates, "before": entry(0.4), "after": entry(0.4 + gain)}))
"""
"""A run of 100 forwards per update; better for ``egspo_sa``, for small learning rates, and for later seeds."""


@pytest.fixture
def fake_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "new_launcher", launcher_of(FAKE_RUN))
    monkeypatch.setattr(scheduling, "_POLL_SECONDS", 0.01)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("dlmrl_kit.experiments.referee.entries.forwards_per_update", lambda *_, **__: 100.0)


def outcome(
    accuracies: Sequence[float],
    *,
    task: str = "sudoku",
    recipe: str = "egspo",
    seed: int = 0,
    status: str = "finished",
    validations: Sequence[float | None] | None = None,
    every: float = 100.0,
    size: int = 400,
) -> Outcome:
    """A run with an evaluation every so many forwards."""
    chosen_on = validations or [None] * len(accuracies)
    curve = tuple(
        Point(10 * place, every * place, 33 * every * place, accuracy, accuracy / 2, validation)
        for place, (accuracy, validation) in enumerate(zip(accuracies, chosen_on, strict=True))
    )
    run = f"{task}-{recipe}-seed-{seed}"
    return Outcome(task, recipe, seed, "", status, size, curve, seconds=2.5, run=run, digest="d" * 16)


def recorded(outcomes: Iterable[Outcome], folder: Path) -> None:
    """Writes outcomes as a comparison does."""
    records = Records(folder, RUNS)
    for found in outcomes:
        records.add(found)


def files(folder: Path) -> dict[str, bytes]:
    """All that a comparison writes but the runs themselves, by name."""
    made = [path for path in folder.rglob("*") if path.is_file() and "runs" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in made if not path.name.startswith(".")}


fake = pytest.mark.usefixtures("fake_comparisons")
FEW = ("Sudoku4x4.num_train=16", "Sudoku4x4.num_heldout=8", "Sudoku4x4.num_pretrain=16")
GRID = {"Trainer.learning_rate": ("1e-4", "3e-4")}


def spec(**changes: object) -> Spec:
    given: dict[str, object] = {"recipes": ("egspo", "egspo_sa"), "base": "egspo", "forwards": 1050, "seeds": 2}
    return Spec(**{**given, "sets": FEW, **changes})  # type: ignore[arg-type]


def dlmrl(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", *arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("draw_curves", "draw_differences"):
        monkeypatch.setattr(f"dlmrl_kit.experiments.referee.report.{name}", lambda *_: None)


class StopsAfter(CompareObserver):
    """Ends a comparison, as Ctrl-C does, when so many runs have ended."""

    def __init__(self, runs: int) -> None:
        self.runs = runs

    def on_status(self, job: Job) -> None:
        self.runs -= job.status != "running"
        if self.runs == 0:
            raise KeyboardInterrupt


def forget_runs(out: Path) -> set[str]:
    """Leaves of a comparison what a repository holds of it; returns the runs that its tables name."""
    for name in ("runs", "recipes"):
        shutil.rmtree(out / name)
    found = [out / name for name in ("runs.csv", "tuning.csv") if (out / name).exists()]
    return {row["run"] for path in found for row in csv.DictReader(io.StringIO(path.read_text()))}


def done_again(out: Path) -> set[str]:
    return {f"{path.parent.parent.name}-{path.parent.name}" for path in out.glob("runs/*/*/attempts")}
