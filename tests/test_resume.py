"""Runs that die: killed at any write and at any moment they end bit by bit as if nothing had happened."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import (
    killed,
    leftovers,
    metric_rows,
    new_run,
    outcome,
    process,
    recipe,
    rollout,
    spread,
    train_file,
    trained_alone,
)

from dlmrl_kit.core.errors import CheckpointError, RecipeError
from dlmrl_kit.core.results import EvalResult, Observer, RunResult
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.rollout.services import Rollout
from dlmrl_kit.training import loop, resume, train
from dlmrl_kit.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.start import trained

SETS = [
    "Trainer.updates = 5",
    "Trainer.checkpoint_every = 2",
    "Trainer.schedule = 'cosine'",
    "Trainer.warmup_steps = 3",
]
KILLS = 6


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.gin"
    path.write_text(recipe(sets=SETS).text())
    return path


@pytest.fixture(scope="module")
def whole(gin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of that recipe, in a process that lives to its end."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trained_alone(gin_file, folder)
    return folder


def finish(folder: Path, gin_file: Path) -> RunResult:
    """What a user does after a kill: resumes; starts again where there is nothing to resume yet."""
    if (folder / "recipe.gin").exists():
        return resume(folder)
    return train(load_recipe(gin_file), folder)


def test_the_uninterrupted_run_is_whole(whole: Path) -> None:
    expected = {"recipe.gin", "run.json", "metrics.csv", "evaluations.json", "result.json", "curve.png", "model"}
    assert {path.name for path in whole.iterdir()} == expected | {"checkpoints"}
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
    second = subprocess.run([*command, "--resume", str(folder)], check=True, **options)
    assert "resumed after update" in second.stdout
    assert outcome(folder) == outcome(whole)


# ------------------------------------------------------------------------------------------- stopped in this process


class Stop(BaseException):
    """Ends a run as a kill would: nothing catches it."""


def stopped(folder: Path, at: int, sets: list[str], uses: list[str] | None = None, name: str = "egspo_sa") -> None:
    """A run that ends right before update ``at``."""
    original = Run._update

    def update(self: Run, number: int) -> None:
        if number == at:
            raise Stop
        original(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_update", update)
        with pytest.raises(Stop):
            train(recipe(name, sets, uses or []), folder)


MODES: dict[str, tuple[list[str], list[str]]] = {
    "LoRA": ([], ["Pretrained.lora_rank = 2"]),
    "MonteCarlo": (["advantage=MonteCarlo", "selector=EntropyImportance"], ["MonteCarlo.n = 1"]),
    "tokens, bfloat16": (["loss=TokenPPO", "regulariser=KLExact"], ["Trainer.precision = 'bfloat16'"]),
    "iterations": (["sampler=RandomOrder"], ["Trainer.inner_iterations = 2", "Trainer.weight_decay = 0.1"]),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_run_resumes(mode: str, tmp_path: Path) -> None:
    uses, sets = MODES[mode]
    sets = [*sets, "Trainer.updates = 3", "Trainer.eval_every = 0", "Trainer.schedule = 'linear'"]
    train(recipe(sets=sets, uses=uses), tmp_path / "whole")
    stopped(tmp_path / "run", 2, sets, uses)
    assert [done for done, _ in checkpoints(tmp_path / "run")] == [1, 2]
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_components_that_draw_from_the_global_generator_resume_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Run.collect

    def collect(self: Run, update: int, *given: Any) -> Rollout:
        rollout = original(self, update, *given)
        weight = rollout.kept["selected", "weight"]
        rollout.kept.set(("selected", "advantage"), torch.rand(weight.shape) - 0.5)
        return rollout

    monkeypatch.setattr(Run, "collect", collect)
    sets = ["Trainer.updates = 3", "Trainer.eval_every = 0"]
    train(recipe(sets=sets), tmp_path / "whole")
    stopped(tmp_path / "run", 2, sets)
    torch.manual_seed(123)
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("at", [0, 1])
def test_a_run_without_a_checkpoint_starts_again(at: int, gin_file: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    original = Run._update

    def update(self: Run, number: int) -> None:
        if number == at:
            raise Stop
        original(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_update", update)
        with pytest.raises(Stop):
            train(load_recipe(gin_file), folder)
    assert checkpoints(folder) == []
    stored = (folder / "evaluations.json").read_bytes()
    told = Told()
    resume(folder, observer=told)
    assert told.first == 0
    assert 0 not in told.evaluated  # it was evaluated before
    assert (folder / "evaluations.json").read_bytes() != stored
    assert outcome(folder) == outcome(whole)


def test_an_evaluation_is_in_the_log_whenever_it_counts_as_done(
    gin_file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = loop.write_atomic

    def write(path: Path, content: str | bytes) -> None:
        original(path, content)
        if path.name == "evaluations.json":
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_atomic", write)
        with pytest.raises(Stop):
            train(load_recipe(gin_file), folder)
    resume(folder)
    assert read_metrics(folder)["eval/accuracy"] == read_metrics(whole)["eval/accuracy"]
    assert outcome(folder) == outcome(whole)


def test_what_a_killed_process_half_wrote_is_ignored_and_removed(gin_file: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped(folder, 3, SETS)
    (folder / "recipe.gin").write_text(gin_file.read_text())
    (folder / "run.json").write_text((whole / "run.json").read_text())
    half = [folder / "checkpoints" / ".update-000004.tmp123", folder / ".model.tmp77", folder / ".model.old78"]
    for path in half:
        path.mkdir()
        (path / "weights.safetensors").write_bytes(b"half of it")
    (folder / "checkpoints" / "update-notes").mkdir()  # someone else's
    assert [done for done, _ in checkpoints(folder)] == [2]
    resume(folder)
    assert not any(path.exists() for path in half)
    assert (folder / "checkpoints" / "update-notes").exists()
    assert outcome(folder) == outcome(whole)


class Told(Observer):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.updates: list[int] = []
        self.evaluated: list[int] = []
        self.ended: list[RunResult] = []

    def on_start(
        self, *, folder: Path, recipe: str, total_updates: int, first_update: int, info: dict[str, Any]
    ) -> None:
        self.first = first_update

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        self.updates.append(update)

    def on_eval(self, update: int, result: EvalResult) -> None:
        self.evaluated.append(update)

    def on_end(self, result: Any) -> None:
        self.ended.append(result)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_resuming_a_finished_run_reports_it_again_and_changes_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / whole.name  # the curve's title
    shutil.copytree(whole, folder)
    before, told = files(folder), Told()
    result = resume(folder, observer=told)
    assert (told.first, told.updates, told.evaluated, told.ended) == (5, [], [], [result])
    stored = json.loads(before["result.json"])
    assert result.seconds == stored["seconds"]
    assert result.after == EvalResult.from_json(stored["after"])
    assert files(folder) == before


def test_a_run_killed_while_it_wrote_its_results_finishes(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "model")
    (folder / "result.json").unlink()
    (folder / "curve.png").unlink()
    (folder / "checkpoints" / "update-000002").mkdir()  # half removed
    assert resume(folder).seconds < 60
    assert outcome(folder) == outcome(whole)
    assert (folder / "curve.png").stat().st_size > 1000


def test_the_result_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plot(folder: Path) -> None:
        raise Stop

    monkeypatch.setattr(loop, "plot_curve", plot)
    with pytest.raises(Stop):
        train(recipe(sets=["Trainer.updates = 1"]), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


# ------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_holds_everything_exactly(tmp_path: Path) -> None:
    sets = ["Trainer.schedule = 'cosine'", "Trainer.minibatches = 3"]
    run, other = new_run(tmp_path, sets=sets), new_run(tmp_path, sets=sets)
    run.updater.update(run.updater.prepare(rollout(run)), 0)
    parts = (run.updater.optimiser, run.updater.scheduler)
    folder = save_checkpoint(tmp_path, 7, trained(run.policy), *parts, {"skipped": 2, "skipped_in_a_row": 1})
    found = load_checkpoint(folder, trained(other.policy), other.updater.optimiser, other.updater.scheduler)
    assert found == (7, {"skipped": 2, "skipped_in_a_row": 1})
    for (name, a), (_, b) in zip(run.policy.trainable(), other.policy.trainable(), strict=True):
        assert torch.equal(a, b), name
    a, b = run.updater.optimiser.state_dict(), other.updater.optimiser.state_dict()
    assert json.dumps(a["param_groups"]) == json.dumps(b["param_groups"])  # tuples have become lists
    assert a["state"].keys() == b["state"].keys() != set()
    for index, entries in a["state"].items():
        for key, value in entries.items():
            assert torch.equal(value, b["state"][index][key])
            assert value.dtype == b["state"][index][key].dtype
    assert run.updater.scheduler.last_epoch == other.updater.scheduler.last_epoch == 3
    for one in (run, other):
        one.updater.update(one.updater.prepare(rollout(one, 1)), 1)
    for (name, p), (_, q) in zip(run.policy.trainable(), other.policy.trainable(), strict=True):
        assert torch.equal(p, q), name
    assert run.updater.scheduler.get_last_lr() == other.updater.scheduler.get_last_lr()


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for done in (2, 9, 999999, 1000000):
        save_checkpoint(tmp_path, done, trained(run.policy), run.updater.optimiser, run.updater.scheduler, {})
    assert [done for done, _ in checkpoints(tmp_path)] == [999999, 1000000]  # by number, not by name
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["update-1000000", "update-999999"]


def test_checkpoints_of_another_policy_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    text = (folder / "recipe.gin").read_text()
    for old, new in (
        ("lora_rank = 0", "lora_rank = 2"),
        (f"{load_recipe(folder / 'recipe.gin').bindings['Pretrained.path'].text}", "'shipped:sudoku4x4'"),
    ):
        assert old in text
        (folder / "recipe.gin").write_text(text.replace(old, new))
        before = files(folder)
        with pytest.raises(
            CheckpointError, match=r"update-000005: its weights do not have the names and shapes of the"
        ):
            resume(folder)
        assert files(folder) == before


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut off", "missing"])
def test_damaged_checkpoints_are_named_and_the_one_before_goes_on(
    name: str, damage: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    newest = checkpoints(folder)[-1][1]
    if damage == "missing":
        (newest / name).unlink()
    else:
        (newest / name).write_bytes((newest / name).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"{newest} cannot be read .*; remove it to go on from the"):
        resume(folder)
    if name == "state.json":
        shutil.rmtree(newest)
        resume(folder)
        assert outcome(folder) == outcome(whole)


def test_a_run_that_lost_its_first_evaluation_does_not_make_one_up(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "evaluations.json").unlink()
    with pytest.raises(CheckpointError, match=r"evaluations\.json is missing or lost the evaluation before training"):
        resume(folder)


def test_learning_rates_follow_the_schedule_through_a_resume(tmp_path: Path) -> None:
    stopped(tmp_path / "run", 3, SETS)
    resume(tmp_path / "run")

    def rate(step: int) -> float:
        return 0.01 * (step / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 7)) / 2)

    expected = [(rate(2 * update) + rate(2 * update + 1)) / 2 for update in range(5)]
    found = read_metrics(tmp_path / "run")["learning_rate"]
    assert [update for update, _ in found] == list(range(5))
    assert [value for _, value in found] == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------- recipe, log, refusals


def test_the_resolved_recipe_reproduces_the_run(whole: Path, tmp_path: Path) -> None:
    train(load_recipe(whole / "recipe.gin"), tmp_path / "again")
    again, expected = outcome(tmp_path / "again"), outcome(whole)
    again["result"]["recipe"] = expected["result"]["recipe"]  # named after its file
    assert again == expected


def test_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    train(load_recipe(whole / "recipe.gin", sets=["Trainer.seed = 1"]), tmp_path / "other")
    assert outcome(tmp_path / "other")["model"] != outcome(whole)["model"]
    assert metric_rows(tmp_path / "other") != metric_rows(whole)


def test_a_pretraining_run_is_not_resumed_as_training(tmp_path: Path) -> None:
    (tmp_path / "recipe.gin").write_text(load_recipe("pretrain_sudoku4x4").text())
    with pytest.raises(
        RecipeError, match=f"holds a pre-training run: go on with 'dlmrl pretrain RECIPE --out {tmp_path}'"
    ):
        resume(tmp_path)


def test_a_run_whose_name_was_lost_is_resumed(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "run.json").unlink()
    resume(folder)
    assert json.loads((folder / "result.json").read_text())["recipe"] == "run"


def test_rows_of_the_log_are_what_was_told(tmp_path: Path) -> None:
    told: dict[int, dict[str, float]] = {}

    class Metrics(Observer):
        def on_update(self, update: int, metrics: dict[str, float]) -> None:
            told[update] = metrics

    train(recipe(sets=["Trainer.updates = 2"]), tmp_path / "run", observer=Metrics())
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["metric"].startswith("eval/")]
    assert {(int(r["update"]), r["metric"]): float(r["value"]) for r in rows} == {
        (update, name): value for update, metrics in told.items() for name, value in metrics.items()
    }
    for metrics in told.values():
        assert 6 < round(metrics["tokens_per_second"] * metrics["seconds"], 6) <= 6 * 16
        assert {"reward", "accuracy", "entropy", "steps", "selected_steps", "reward/cells"} <= metrics.keys()
