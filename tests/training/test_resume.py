"""Runs that were stopped in this process resume bit by bit; their recipe, log and refusals."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import Killed, files, metric_rows, outcome, recipe, stopped

from dlmrl_kit.core.errors import CheckpointError, RecipeError
from dlmrl_kit.core.results import EvalResult, RunObserver, RunResult
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import evaluation_files, results, resume, train
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.update import Rollout, Update

SETS = [
    "Trainer.updates = 5",
    "Trainer.checkpoint_every = 2",
    "Trainer.schedule = 'cosine'",
    "Trainer.warmup_steps = 3",
]

# ------------------------------------------------------------------------------------------- stopped in this process


MODES: dict[str, tuple[list[str], list[str]]] = {
    "LoRA": ([], ["Pretrained.lora_rank = 2"]),
    "MonteCarlo": (["advantage=MonteCarlo", "selector=EntropyImportance"], ["MonteCarlo.n = 1"]),
    "tokens, bfloat16": (["loss=TokenPPO", "regulariser=KLExact"], ["Trainer.precision = 'bfloat16'"]),
    "iterations": (["sampler=RandomOrder"], ["Trainer.inner_iterations = 2", "Trainer.weight_decay = 0.1"]),
}


@pytest.mark.thorough
@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_run_resumes(mode: str, tmp_path: Path) -> None:
    uses, sets = MODES[mode]
    sets = [*sets, "Trainer.updates = 3", "Trainer.eval_every = 0", "Trainer.schedule = 'linear'"]
    train(recipe(sets=sets, uses=uses), tmp_path / "whole")
    stopped(lambda: train(recipe(sets=sets, uses=uses), tmp_path / "run"), 2)
    assert [done for done, _ in checkpoints(tmp_path / "run")] == [1, 2]
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_components_that_draw_from_the_global_generator_resume_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Update.roll_out

    def roll_out(self: Update, number: int) -> Rollout:
        rollout = original(self, number)
        weight = rollout.kept["selected", "weight"]
        rollout.kept.set(("selected", "advantage"), torch.rand(weight.shape) - 0.5)
        return rollout

    monkeypatch.setattr(Update, "roll_out", roll_out)
    sets = ["Trainer.updates = 3", "Trainer.eval_every = 0"]
    train(recipe(sets=sets), tmp_path / "whole")
    stopped(lambda: train(recipe(sets=sets), tmp_path / "run"), 2)
    torch.manual_seed(123)
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("at", [0, 1])
def test_a_run_without_a_checkpoint_starts_again(at: int, gin_file: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped(lambda: train(load_recipe(gin_file), folder), at)
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
    original = evaluation_files.write_atomic

    def write(path: Path, content: str | bytes) -> None:
        original(path, content)
        if path.name == "evaluations.json":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(evaluation_files, "write_atomic", write)
        with pytest.raises(Killed):
            train(load_recipe(gin_file), folder)
    resume(folder)
    assert read_metrics(folder)["eval/accuracy"] == read_metrics(whole)["eval/accuracy"]
    assert outcome(folder) == outcome(whole)


def test_what_a_killed_process_half_wrote_is_ignored_and_removed(gin_file: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped(lambda: train(recipe(sets=SETS), folder), 3)
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


class Told(RunObserver):
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
    def export(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(results, "export", export)
    with pytest.raises(Killed):
        train(recipe(sets=["Trainer.updates = 1"]), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


# ------------------------------------------------------------------------------------------- checkpoints


def test_a_run_that_lost_its_first_evaluation_does_not_make_one_up(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "evaluations.json").unlink()
    with pytest.raises(CheckpointError, match=r"evaluations\.json is missing or lost the evaluation before training"):
        resume(folder)


def test_learning_rates_follow_the_schedule_through_a_resume(tmp_path: Path) -> None:
    stopped(lambda: train(recipe(sets=SETS), tmp_path / "run"), 3)
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

    class Metrics(RunObserver):
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
