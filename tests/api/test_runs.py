"""Algorithms that were built in Python train as those of recipes do, and runs are objects with frames and figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.observers import Messages, Stop, StopAfterTheFirstUpdate
from support.runs import build, outcome, recipe
from typer.testing import CliRunner

import dlmrl_kit as dk
from dlmrl_kit.cli.app import app
from dlmrl_kit.core.errors import CheckpointError, RecipeError, UserError
from dlmrl_kit.core.registry import register, registered, unregister
from dlmrl_kit.losses import StepPPO

EVERYWHERE = ["EntropyTopK.k = 2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dk.TrainedRun:
    return dk.train(build(sets=EVERYWHERE), tmp_path_factory.mktemp("runs") / "built", progress=False)


def test_an_algorithm_trains_as_its_recipe_does(trained: dk.TrainedRun, tmp_path: Path) -> None:
    of_recipe = dk.train(recipe(sets=EVERYWHERE), tmp_path / "recipe", progress=False)
    one, other = outcome(trained.folder), outcome(of_recipe.folder)
    named = {"recipe", "result", "state.json"}  # these hold the recipe's name or text
    assert {key for key in one if one[key] != other[key]} == named
    assert {"model", "evaluations"} <= one.keys()


def test_an_algorithm_can_be_trained_twice_and_is_not_changed(trained: dk.TrainedRun, tmp_path: Path) -> None:
    algorithm = build(sets=[*EVERYWHERE, "Trainer.updates = 1"], uses=["sampler=LearnedOrder"])
    again = [dk.train(algorithm, tmp_path / name, progress=False) for name in "ab"]
    assert outcome(again[0].folder)["model"] == outcome(again[1].folder)["model"]
    assert not list(algorithm.sampler.parameters())


def test_an_interrupted_run_goes_on_to_the_same_result(trained: dk.TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        dk.train(build(sets=EVERYWHERE), tmp_path / "run", observer=StopAfterTheFirstUpdate())
    assert dk.resume(tmp_path / "run", progress=False).updates == 4
    assert outcome(tmp_path / "run") == outcome(trained.folder)


def test_commands_take_its_folder(trained: dk.TrainedRun) -> None:
    result = CliRunner().invoke(app, ["eval", str(trained.folder), "--size", "4"])
    assert result.exit_code == 0, result.output


def test_its_frames_are_what_the_files_say(trained: dk.TrainedRun) -> None:
    metrics, evaluations = trained.metrics, trained.evaluations
    assert list(metrics.index) == [0, 1, 2, 3]
    assert list(evaluations.index) == [0, 2, 4]
    assert not [name for name in metrics.columns if name.startswith("eval/")]
    rows = [line.split(",") for line in (trained.folder / "metrics.csv").read_text().splitlines()[1:]]
    rewards = [float(value) for _, name, value in rows if name == "reward"]
    assert metrics["reward"].tolist() == rewards
    assert evaluations.loc[4, "accuracy"] == trained.after.accuracy
    assert (evaluations.loc[4, "low"], evaluations.loc[4, "high"]) == trained.after.interval()


def test_its_figure_is_an_image_for_notebooks(trained: dk.TrainedRun) -> None:
    figure = trained.figure()
    assert figure._repr_png_() == (trained.folder / "curve.png").read_bytes()  # type: ignore[attr-defined]


def test_a_finished_run_is_opened_from_its_folder(trained: dk.TrainedRun, tmp_path: Path) -> None:
    opened = dk.load_run(trained.folder)
    assert (opened.before, opened.after, opened.updates) == (trained.before, trained.after, 4)
    assert repr(opened) == repr(trained)
    for name, weight in opened.policy().named_parameters():
        assert torch.equal(weight, dict(trained.policy().named_parameters())[name])
    with pytest.raises(CheckpointError, match=r"holds no finished run \(no result.json in it\)"):
        dk.load_run(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is damaged"):
        dk.load_run(tmp_path)


def test_without_pandas_the_frame_says_how_to_get_it(trained: dk.TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'dlmrl-kit\[notebook\]'"):
        _ = trained.metrics


def test_it_shows_its_progress_unless_told_not_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = build(sets=[*EVERYWHERE, "Trainer.updates = 1"])
    dk.train(short, tmp_path / "loud")
    assert re.search(r"update 1/1 .*reward", capsys.readouterr().out)
    dk.train(short, tmp_path / "quiet", progress=False)
    assert capsys.readouterr().out == ""


def test_components_that_do_not_fit_leave_no_folder(tmp_path: Path) -> None:
    algorithm = build(sets=EVERYWHERE)
    algorithm.loss = dk.losses.TokenAdvantagePPO()
    with pytest.raises(RecipeError, match=r"TokenAdvantagePPO reads .*, which no component before it writes"):
        dk.train(algorithm, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_what_is_no_algorithm_and_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="train takes an Algorithm, a recipe, or the name or path of one, not a StepPPO"
    ):
        dk.train(StepPPO(), tmp_path / "run")  # type: ignore[arg-type]


def test_a_value_out_of_range_is_named(tmp_path: Path) -> None:
    algorithm = build(sets=EVERYWHERE)
    algorithm.trainer.updates = 0
    with pytest.raises(RecipeError, match=r"^Algorithm: Trainer.updates must be at least 1, got 0$"):
        dk.train(algorithm, tmp_path / "run", progress=False)


def test_a_class_of_the_session_trains_and_resumes_and_says_what_does_not_work(tmp_path: Path) -> None:
    doc = "Of this session.\n\nArguments as ``StepPPO``."
    cls: Any = register("loss")(type("SessionLoss", (StepPPO,), {"__module__": "__main__", "__doc__": doc}))
    try:
        algorithm, messages = build(sets=[*EVERYWHERE, "Trainer.updates = 1"]), Messages()
        algorithm.loss = cls()
        dk.train(algorithm, tmp_path / "run", observer=messages)
        assert dk.resume(tmp_path / "run", sets=["Trainer.updates = 2"], progress=False).updates == 2
    finally:
        unregister(next(entry for entry in registered("loss") if entry.cls is cls))
    assert any("SessionLoss is defined in this session alone" in message for message in messages.messages)
    with pytest.raises(RecipeError, match="no loss named 'SessionLoss'"):
        dk.resume(tmp_path / "run", progress=False)
