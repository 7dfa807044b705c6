"""``dlmrl train``: its output, folders, and runs that are interrupted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.command_line import OPTIONS, dlmrl

from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.report.run_console import RichRunObserver


def test_train_ends_with_table_paths_and_next_commands(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    result = dlmrl("train", "egspo", *OPTIONS, "--out", str(folder))
    assert result.exit_code == 0, result.output
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.stdout)
    for expected in ("egspo: 6 updates into", "update 6/6", "heldout accuracy before training", "accuracy [95% CI]"):
        assert expected in result.stdout
    for name in ("model", "curve.png", "metrics.csv", "recipe.gin"):
        assert (folder / name).exists()
        assert str(folder / name) in result.stdout
    assert f"dlmrl eval '{folder}'" in result.stdout
    assert "note: dropped Pretrained.path" in result.stderr
    assert set(read_metrics(folder)) >= {"reward", "entropy", "loss", "eval/accuracy", "tokens_per_second"}


def test_default_folder_carries_recipe_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    monkeypatch.setattr("dlmrl_kit.training.train", lambda recipe, folder, **_: folders.append(folder))
    assert dlmrl("train", "egspo").exit_code == 0
    assert re.fullmatch(r"runs/egspo-\d{8}-\d{6}", str(folders[0]))


def test_samples_are_shown_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    updates = ("--set", "Trainer.updates=2")
    result = dlmrl("train", *OPTIONS, *updates, "--out", str(folder), "--show-samples", "3")
    assert result.exit_code == 0, result.output
    kept = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert len(kept) == 8  # of each update at least four
    for update in (1, 2):
        own = [sample for sample in kept if sample["update"] == update - 1]
        for number, sample in enumerate((own[0], own[1], own[2]), 1):
            lines = f"update {update}, sample {number}: reward {sample['reward']:.3f}\n"
            lines += f"  prompt      {sample['prompt']}\n  completion  {sample['completion']}\n"
            assert lines in result.stdout
    resumed = dlmrl("train", "--resume", str(folder), "--set", "Trainer.updates=3", "--show-samples", "6")
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stdout.count("update 3, sample ") == 6
    assert len((folder / "completions.jsonl").read_text().splitlines()) == 14


def test_seed_is_a_binding(run: Path) -> None:
    assert "Trainer.seed = 3\n" in (run / "recipe.gin").read_text()


def test_train_refuses_an_occupied_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, hint in ((run, f"dlmrl train --resume {run}"), (tmp_path, "choose another --out")):
        result = dlmrl("train", *OPTIONS, "--out", str(folder))
        assert result.exit_code == 2
        assert f"{folder} is not empty" in result.stderr
        assert hint in result.stderr
    result = dlmrl("train", *OPTIONS, "--out", str(tmp_path / "file" / "run"))
    assert result.exit_code == 2
    assert "no folder that can be written to" in result.stderr


def without_times(folder: Path) -> str:
    lines = (folder / "metrics.csv").read_text().splitlines()
    return "\n".join(line for line in lines if "seconds" not in line and "tokens_per_second" not in line)


@pytest.mark.parametrize("last_update", [1, 3])
def test_interrupted_run_resumes_to_the_same_metrics(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_update: int
) -> None:
    def interrupt(_: RichRunObserver, update: int, metrics: dict[str, float]) -> None:
        if update == last_update:
            raise KeyboardInterrupt

    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(RichRunObserver, "on_update", interrupt)
        result = dlmrl("train", *OPTIONS, "--seed", "3", "--out", str(folder))
    assert result.exit_code == 1
    assert result.stderr.endswith(f"interrupted; go on with: dlmrl train --resume {folder}\n")
    result = dlmrl("train", "--resume", str(folder))
    assert result.exit_code == 0, result.output
    assert without_times(folder) == without_times(run)


def test_interrupt_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dlmrl_kit.training.train", interrupt)
    result = dlmrl("train", "--out", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert result.stderr.endswith("interrupted before anything was written\n")


def test_a_run_is_made_longer_and_changes_are_accepted(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    refused = dlmrl("train", "--resume", str(folder), "--set", "Trainer.learning_rate=0.5")
    assert refused.exit_code == 2
    assert re.search(
        r"error: .*Trainer\.learning_rate was \S+, now 0\.5; undo that, .*--accept-changes", refused.stderr
    )
    longer = dlmrl("train", "--resume", str(folder), "--set", "Trainer.updates=7")
    assert longer.exit_code == 0, longer.output
    assert "Trainer.updates was 6, now 7, recorded in run.json" in longer.stdout
    assert "update 7/7" in longer.stdout
    accepted = dlmrl("train", "--resume", str(folder), "--set", "Trainer.eval_size=4", "--accept-changes")
    assert accepted.exit_code == 0, accepted.output
    entries = json.loads((folder / "run.json").read_text())["changes"]
    assert [entry["changed"] for entry in entries] == [
        ["Trainer.updates was 6, now 7"],
        ["Trainer.eval_size was 8, now 4"],
    ]
    assert dlmrl("train", "egspo", "--accept-changes").exit_code == 2
