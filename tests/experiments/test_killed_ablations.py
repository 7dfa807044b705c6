"""Real ablations that are killed go on to the same tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.fake_runs import plain_runs, rows
from support.process_ends import killed
from typer.testing import CliRunner, Result

import dlmrl_kit.experiments.runs as scheduling
from dlmrl_kit.cli.app import app

TINY = [
    *("Sampler.tokens_per_step=4", "Trainer.updates=3", "Trainer.prompts_per_update=2", "Trainer.group_size=3"),
    *("Trainer.learning_rate=0.001", "Trainer.eval_every=2", "Trainer.eval_size=4", "Trainer.checkpoint_every=1"),
    *("Sudoku4x4.num_train=8", "Sudoku4x4.num_heldout=4"),
]
TABLES = ("results.csv", "summary.csv", "summary.json")


def dlmrl(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ablate", *arguments])


def options(swaps: str, seeds: int, out: Path, jobs: int = 2) -> list[str]:
    sets = [word for binding in TINY for word in ("--set", binding)]
    return ["egspo", "--swap", swaps, "--seeds", str(seeds), "--out", str(out), "--jobs", str(jobs), *sets]


@pytest.fixture
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)


def same_tables(one: Path, two: Path) -> None:
    for table in TABLES:
        assert (one / table).read_text() == (two / table).read_text(), table


@pytest.mark.thorough
@pytest.mark.usefixtures("_one_thread")
def test_a_killed_ablation_goes_on_to_the_tables_of_plain_runs(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling.Scheduler, "run", plain_runs)
        assert dlmrl(*options("selector=UniformSteps", 1, whole)).exit_code == 0
    assert len(rows(whole / "results.csv")) > 50
    killed(
        "ablate",
        options("selector=UniformSteps", 1, cut, jobs=1),
        lambda: any(cut.glob("runs/*/*/checkpoints/update-*")),
    )
    assert not (cut / "results.csv").exists()
    result = dlmrl(*options("selector=UniformSteps", 1, cut))
    assert result.exit_code == 0, result.output
    assert "goes on" in result.output
    for name in ("recipe.gin", "metrics.csv", "model/config.json", "result.json", "curve.png", "log.txt"):
        assert (cut / "runs/selector-UniformSteps/seed-0" / name).is_file()
    same_tables(whole, cut)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_one_thread")
def test_three_selectors_by_two_seeds_killed_twice_give_the_same_tables(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    swaps = "selector=EntropyTopK,UniformSteps,RandomSteps"
    assert dlmrl(*options(swaps, 2, whole)).exit_code == 0
    killed("ablate", options(swaps, 2, cut), lambda: any(cut.glob("runs/*/*/checkpoints/update-*")))
    killed("ablate", options(swaps, 2, cut), lambda: len(list(cut.glob("runs/*/*/result.json"))) >= 3)
    assert not (cut / "results.csv").exists()
    result = dlmrl(*options(swaps, 2, cut))
    assert result.exit_code == 0, result.output
    assert "finished already" in result.output
    assert {job["status"] for job in json.loads((cut / "summary.json").read_text())["runs"]} == {"finished"}
    assert len(rows(cut / "summary.csv")) == 3
    same_tables(whole, cut)
