"""What is measured of a recipe's steps: selections, entropy, variances, files and mistakes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from support.runs import collect, model_path, new_run, recipe
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.experiments import step_measures
from dlmrl_kit.experiments.step_measures import measure_steps


def tiny(folder: Path, name: str = "egspo_sa", *sets: str) -> str:
    """A recipe file; its own weights are not those that are measured."""
    path = folder / f"{name}.gin"
    path.write_text(recipe(name, [*sets, "EntropyTopK.k = 2"] if name == "egspo_sa" else sets).text())
    return str(path)


@pytest.mark.thorough
def test_a_command_measures_and_writes(tmp_path: Path) -> None:
    own = tiny(tmp_path)
    arguments = ["steps", model_path(), "--recipe", own, "--batches", "3", "--selector", "AllSteps"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/steps.csv").read_text())))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "all"]  # 16 positions, 4 in each step
    assert [float(row["norm"]) for row in rows] == [measure["norm"] for measure in found["steps"]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("steps.csv", "kept.csv", "steps.png", "steps.pdf", "steps.svg")
    }
    assert "mathdefault" not in (tmp_path / "out/steps.svg").read_text()  # plain numbers along the logarithmic axis
    kept = found["selectors"]
    assert kept["AllSteps"] == [1.0] * 4
    assert sum(kept["EntropyTopK"]) == pytest.approx(2)
    run = new_run(tmp_path / "run", sets=["EntropyTopK.k = 2"])
    entropy = sum(collect(run, number).everything["step", "entropy"].mean(0) for number in range(3)) / 3
    assert [measure["entropy"] for measure in found["steps"][:-1]] == pytest.approx(entropy.tolist(), rel=1e-3)


@pytest.mark.thorough
def test_measures_are_those_of_the_batches(tmp_path: Path) -> None:
    report = measure_steps(model_path(), recipe=tiny(tmp_path), batches=3)
    run = new_run(tmp_path / "run", sets=["EntropyTopK.k = 2"])
    batches = [collect(run, number).kept for number in range(3)]
    rewards, advantages, starts = [], [], []
    for batch in batches:
        used = batch["selected", "weight"] != 0
        advantages += batch["selected", "advantage"][used].tolist()
        starts += batch["selected", "step"][used].tolist()
        rewards += batch["reward"].tolist()
    for measure in report.steps:
        own = [a for a, s in zip(advantages, starts, strict=True) if measure.step in (None, s + 1)]
        assert measure.advantage == (pytest.approx(sum(own) / len(own), abs=1e-7) if own else None)
        mean = sum(rewards) / len(rewards)
        count = len(rewards) - (1 if measure.step else 0.25)  # of all steps together each reward is there four times
        variance = sum((reward - mean) ** 2 for reward in rewards) / count
        assert measure.reward_variance == pytest.approx(variance)


@pytest.mark.parametrize(
    ("name", "sets", "options", "told"),
    [
        ("egspo_sa", [], {"batches": 1}, "need at least 2 batches, got 1"),
        ("egspo_sa", ["Pretrained.lora_rank = 2"], {}, "trains an adapter"),
        ("egspo_sa", [], {"selectors": ["NoSuchSteps"]}, "NoSuchSteps"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, name: str, sets: list[str], options: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        measure_steps(model_path(), recipe=tiny(tmp_path, name, *sets), **options)  # type: ignore[arg-type]


def test_pre_training_has_no_steps() -> None:
    with pytest.raises(UserError, match="pre-training, which has no denoising steps"):
        measure_steps(model_path(), recipe="pretrain_sudoku4x4")


def test_a_selector_that_does_not_fit_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []
    monkeypatch.setattr(step_measures, "_Batches", lambda *given: measured.append(given))
    with pytest.raises(UserError, match="TopAbsoluteAdvantage reads"):
        measure_steps(model_path(), recipe=tiny(tmp_path), selectors=["TopAbsoluteAdvantage"])
    assert measured == []
