"""The best model: chosen on the split ``pretrain``, kept over kills, exported beside the last one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.observers import Messages, Stop, StopAfterTheFirstUpdate
from support.runs import recipe
from torch import Tensor

from dlmrl_kit.core.errors import CheckpointError, RecipeError
from dlmrl_kit.core.results import EvalResult, RunObserver
from dlmrl_kit.training import evaluate_path, resume, train
from dlmrl_kit.training.best_model import BestModel, _best

SETS = ["Trainer.validation_size = 6", "Trainer.eval_every = 1", "Sudoku4x4.num_pretrain = 6", "Trainer.updates = 4"]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, observer = tmp_path_factory.mktemp("best") / "run", Messages()
    train(recipe("egspo_sa", SETS), folder, observer=observer)
    return folder, observer.messages


def test_the_best_on_validation_is_exported(run: tuple[Path, list[str]]) -> None:
    folder, said = run
    result = json.loads((folder / "result.json").read_text())["best"]
    entries = json.loads((folder / "validations.json").read_text())
    heldout = json.loads((folder / "evaluations.json").read_text())
    assert list(entries) == ["0", "1", "2", "3", "4"]
    assert {entry["split"] for entry in entries.values()} == {"pretrain"}
    counted = {int(u): (entry["accuracy"], entry["reward"], -int(u)) for u, entry in entries.items() if u != "0"}
    assert result["updates"] == max(counted, key=lambda u: counted[u])
    assert result["validation"] == entries[str(result["updates"])]
    assert result["heldout"] == heldout[str(result["updates"])]
    again = evaluate_path(str(folder / "best_model"), split="pretrain", size=6)
    assert (again.accuracy, again.reward) == (result["validation"]["accuracy"], result["validation"]["reward"])
    kept = load_file(folder / "best" / f"update-{result['updates']:06d}" / "weights.safetensors")
    assert same(kept, weights(folder / "best_model"))
    assert any(line.startswith(f"best on validation: after {result['updates']} updates, ") for line in said)
    assert f"{result['updates']} updates" in (folder / "best_model" / "README.md").read_text()


def test_the_last_model_is_that_of_a_run_that_chooses_none(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    train(recipe("egspo_sa", [*SETS, "Trainer.validation_size = 0"]), tmp_path / "plain")
    assert same(weights(tmp_path / "plain" / "model"), weights(run[0] / "model"))
    assert not [path for path in (tmp_path / "plain").iterdir() if "best" in path.name or "validation" in path.name]


def test_a_killed_run_chooses_the_same(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(recipe("egspo_sa", SETS), tmp_path / "killed", observer=StopAfterTheFirstUpdate())
    resume(tmp_path / "killed")
    for name in ("validations.json", "evaluations.json"):
        assert (tmp_path / "killed" / name).read_text() == (run[0] / name).read_text()
    assert same(weights(tmp_path / "killed" / "best_model"), weights(run[0] / "best_model"))
    assert [p.name for p in (tmp_path / "killed" / "best").iterdir()] == [p.name for p in (run[0] / "best").iterdir()]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["Sudoku4x4.num_pretrain = 0"], "the pretrain split is empty; set num_pretrain"),
        (["Trainer.sharding = 'full'"], "Trainer.validation_size is not for Trainer.sharding = 'full'"),
        (["Trainer.validation_size = -1"], "Trainer.validation_size must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_training(sets: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        train(recipe("egspo_sa", [*SETS, *sets]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_of_a_failed_start_stays(tmp_path: Path) -> None:
    class Failing(RunObserver):
        def on_eval(self, update: int, result: EvalResult) -> None:
            if update:
                raise RuntimeError("boom")

    folder = tmp_path / "run"
    late = ["Trainer.checkpoint_every = 4", "Trainer.traced_examples = 1"]
    with pytest.raises(RuntimeError, match="boom"):
        train(recipe("egspo_sa", [*SETS, *late]), folder, observer=Failing())
    left = {"validations.json", "best", "trajectories.html", "trajectories.json", "metrics.csv"}
    assert left <= {path.name for path in folder.iterdir()}
    plain = ["Trainer.validation_size = 0", "Trainer.traced_examples = 0", "Algorithm.logger = None"]
    train(recipe("egspo_sa", [*SETS, *plain, "Trainer.updates = 1"]), folder)
    assert not left & {path.name for path in folder.iterdir()}


SCORES = st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([-1.0, 0.0, 2.0]))


@given(st.dictionaries(st.integers(0, 9), SCORES), st.integers(0, 9))
def test_the_rule(scores: dict[int, tuple[float, float]], most: int) -> None:
    found = _best({updates: EvalResult("pretrain", 4, *score) for updates, score in scores.items()}, most)
    allowed = [updates for updates in scores if 1 <= updates <= most]
    if not allowed:
        assert found is None
        return
    assert found is not None
    assert found.updates in allowed
    for other in allowed:
        assert scores[other] < scores[found.updates] or (
            scores[other] == scores[found.updates] and found.updates <= other
        )


def test_weights_stay_that_a_resume_may_go_back_to(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    best = BestModel(tmp_path, {"w": parameter})
    for done, accuracy, safe in ((1, 0.5, 0), (2, 0.6, 1), (3, 0.4, 1), (4, 0.9, 1)):
        with torch.no_grad():
            parameter.fill_(done)
        best.note(done, EvalResult("pretrain", 4, accuracy, 0.0), safe)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["update-000001", "update-000004"]
    again = BestModel(tmp_path, {"w": parameter})
    again.restore(1)  # the newest checkpoint is of one update
    assert again.best is not None
    again.load(again.best)
    assert parameter.tolist() == [1.0, 1.0]


def test_weights_that_are_damaged_or_of_another_run_are_named(tmp_path: Path) -> None:
    best = BestModel(tmp_path, {"w": torch.nn.Parameter(torch.zeros(2))})
    best.note(1, EvalResult("pretrain", 4, 0.5, 0.0), 0)
    assert best.best is not None
    with pytest.raises(CheckpointError, match="do not have the names and shapes"):
        BestModel(tmp_path, {"w": torch.nn.Parameter(torch.zeros(3))}).load(best.best)
    folder = tmp_path / "best" / "update-000001"
    file = folder / "weights.safetensors"
    written = file.read_bytes()
    for damaged in (written[:20], written[:-1] + bytes([written[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"update-000001 cannot be read \(it is not what was written there"):
            best.load(best.best)
    file.write_bytes(written)
    best.load(best.best)
    (folder / "checksums.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"update-000001 cannot be read \(checksums.json: it holds no checksums"):
        best.load(best.best)
    (folder / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match=r"update-000001 cannot be read \(checksums.json: No such file"):
        best.load(best.best)
