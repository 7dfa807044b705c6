"""Run folders in use, of failed starts, removed while the run goes on, damaged, and used from another place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command_line import dlmrl
from support.own_data import OwnData, own_data
from support.pretraining import tiny
from support.runs import recipe

from dlmrl_kit.core.errors import CheckpointError, FileError, UserError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.run_folder import one_writer
from dlmrl_kit.experiments import ablate, make_design
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.pretraining.run import pretrain
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import evaluate_path, record, resume, train

SHORT = ["Trainer.updates = 2", "Trainer.eval_every = 0"]

# ------------------------------------------------------------------------------------------- one writer

WRITERS: dict[str, Callable[[Path], Any]] = {
    "train": lambda folder: train(recipe(sets=SHORT), folder),
    "resume": resume,
    "pretrain": lambda folder: pretrain(tiny(), folder),
    "ablate": lambda folder: ablate(make_design("egspo", ["selector=UniformSteps"], seeds=1), folder),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_writes_a_run_folder_waits_for_nobody(writer: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with one_writer(folder):
        if writer == "resume":
            (folder / "recipe.gin").write_text(recipe(sets=SHORT).text())
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(UserError, match=f"another process is working on {folder}; wait for it, or stop it"):
            WRITERS[writer](folder)
        assert sorted(path.name for path in folder.iterdir()) == before


# ------------------------------------------------------------------------------------------- failed starts


def test_the_same_command_works_after_a_failed_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_data(tmp_path / "own", "failed_start_reward", monkeypatch)
    good = own.reward.read_text()
    own.reward.write_text(good.replace("def score", "def scores"))
    path, folder = tmp_path / "own.gin", tmp_path / "run"
    path.write_text(own.recipe().text())
    failed = dlmrl("train", str(path), "--out", str(folder))
    assert failed.exit_code == 2, failed.output
    assert "no function 'score'" in failed.stderr
    own.reward.write_text(good)
    again = dlmrl("train", str(path), "--out", str(folder))
    assert again.exit_code == 0, again.output
    assert "failed_start" not in json.loads((folder / "run.json").read_text())
    assert dlmrl("train", str(path), "--out", str(folder)).exit_code == 2


class Failing(RunObserver):
    """Fails at an update."""

    def __init__(self, at: int, error: Exception) -> None:
        self.at, self.error = at, error

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        if update == self.at:
            raise self.error


@pytest.mark.parametrize(("at", "starts_over"), [(0, True), (1, False)])
def test_a_failure_after_a_checkpoint_is_resumed(at: int, starts_over: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="boom"):
        train(recipe(sets=SHORT), folder, observer=Failing(at, RuntimeError("boom")))
    if starts_over:
        train(recipe(sets=[*SHORT, "Trainer.seed = 1"]), folder)
        assert len((folder / "evaluations.json").read_text()) > 100
        assert "Trainer.seed = 1\n" in (folder / "recipe.gin").read_text()
    else:
        with pytest.raises(CheckpointError, match="already holds a run: resume it"):
            train(recipe(sets=SHORT), folder)
        resume(folder)


def test_a_start_that_failed_on_a_full_disk_does_not_occupy_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str) -> None:
        raise FileError(f"cannot write {path}: No space left on device")

    def fill(*_: Any) -> None:
        monkeypatch.setattr(record, "write_atomic", full)
        raise OSError(28, "No space left on device")

    folder = tmp_path / "run"
    monkeypatch.setattr(MetricsCSV, "open", fill)
    with pytest.raises(FileError, match=r"MetricsCSV cannot write metrics into .*: No space left on device"):
        train(recipe(sets=SHORT), folder)
    monkeypatch.undo()
    assert train(recipe(sets=SHORT), folder).updates == 2


# ------------------------------------------------------------------------------------------- removed, full, damaged


class Removing(RunObserver):
    """Removes the run folder at an update."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        shutil.rmtree(self.folder)


STARTS: dict[str, Callable[[Path, RunObserver], Any]] = {
    "train": lambda folder, observer: train(recipe(sets=SHORT), folder, observer=observer),
    "pretrain": lambda folder, observer: pretrain(tiny(), folder, observer=observer),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_folder_that_is_removed_meanwhile_ends_the_run(start: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(CheckpointError, match=f"{folder} was moved or removed while its run went on"):
        STARTS[start](folder, Removing(folder))
    assert not folder.exists()


def test_a_full_disk_at_the_log_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def log(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsCSV, "log", log)
    with pytest.raises(FileError, match=f"MetricsCSV cannot write metrics into {tmp_path / 'run'}: No space left on"):
        train(recipe(sets=SHORT), tmp_path / "run")


@pytest.mark.parametrize("name", ["run.json", "evaluations.json", "result.json"])
@pytest.mark.parametrize("content", ["", "[1", "null", '{"0": 3, "seconds": "x"}', "[" * 50_000])
def test_damaged_json_in_a_run_folder_is_named(name: str, content: str, finished: Path, tmp_path: Path) -> None:
    if name == "run.json" and content.startswith('{"0"'):
        pytest.skip("it is a record without what it should hold")
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{folder / name} is damaged ") as info:
        resume(folder)
    assert len(str(info.value)) < 500


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(recipe(sets=SHORT), folder)
    return folder


# ------------------------------------------------------------------------------------------- from anywhere


def mixture(own: OwnData) -> list[str]:
    return ["Algorithm.task = @Mixture()", "Mixture.tasks = [@JsonLines()]"]


@pytest.mark.parametrize("sets", [lambda own: [], mixture], ids=["alone", "in a mixture"])
def test_a_run_on_relative_paths_works_from_anywhere(
    sets: Callable[[OwnData], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, place = tmp_path / "run", tmp_path / "own"
    place.mkdir()
    own = OwnData(place, f"anywhere{len(sets(None))}")  # type: ignore[arg-type]
    monkeypatch.chdir(place)  # the reward module is found in the current folder only
    train(own.recipe(sets(own), relative=True), folder)
    text = (folder / "recipe.gin").read_text()
    for line in (f"path = '{own.data}'", f"reward_folder = '{place}'", f"Pretrained.path = '{own.model}'"):
        assert line in text
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / own.reward.name).write_text("def score(completion, example):\n    return 1.0\n")  # not the run's
    (other / own.data.name).write_text("")
    monkeypatch.chdir(other)
    assert evaluate_path(str(folder), size=2).reward == 0.0
    assert resume(folder, sets=["Trainer.updates = 3"]).after.reward == 0.0


def test_paths_are_made_absolute_only_where_something_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_data(tmp_path / "own", "absolute_reward", monkeypatch)
    monkeypatch.chdir(tmp_path)
    loaded = own.recipe(["JsonLines.path = 'none.jsonl'", "Pretrained.path = 'some/hub-id'"])
    assert {k: loaded.bindings[k].value for k in ("JsonLines.path", "Pretrained.path")} == {
        "JsonLines.path": "none.jsonl",
        "Pretrained.path": "some/hub-id",
    }
    # The module is on the Python path, below the current folder: its folder may not be on it the next time.
    assert loaded.bindings["JsonLines.reward_folder"].value == str(tmp_path / "own")
    monkeypatch.chdir("/")
    assert load_recipe("egspo").bindings["Pretrained.path"].value == "shipped:sudoku4x4"
