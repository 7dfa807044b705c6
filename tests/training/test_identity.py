"""A run goes on as what it was: whatever it depends on is compared, named, and recorded if it is accepted."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.own_data import OwnData, own_data
from support.runs import model_path, outcome, recipe, stopped

from dlmrl_kit.core.checksums import CHECKSUMS, file_digest
from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.recipe.plugins import Plugin
from dlmrl_kit.tasks.mixture import Mixture
from dlmrl_kit.training import identity, resume, train
from dlmrl_kit.training.checkpoint import STATE, checkpoints, identity_in
from dlmrl_kit.training.identity import Identity, changes, identity_of, lasting_name


def found(own: OwnData, *sets: str) -> Identity:
    loaded = own.recipe(sets)
    return identity_of(loaded, loaded.build_algorithm(), torch.device("cpu"))


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


FILES: dict[str, Callable[[OwnData], Path]] = {
    "data": lambda own: own.data,
    "the reward function's module": lambda own: own.reward,
    "a module that it imports": lambda own: own.helper,
    "base weights": lambda own: own.model / "model.safetensors",
    "tokenizer": lambda own: next(own.model.glob("tokenizer*.json")),
}


@pytest.mark.parametrize("which", FILES)
def test_a_changed_file_is_a_change_that_names_it(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_data(tmp_path / "own", "identity_reward", monkeypatch)
    before, path = found(own), FILES[which](own)
    assert changes(before, found(own)) == []
    append(path)
    assert [str(change) for change in changes(before, found(own))] == [f"{path} has changed"]


PLACES: dict[str, tuple[str, str | None, str]] = {
    "the kit's": ("KIT/assets/sudoku4x4/model.safetensors", None, "dlmrl_kit/assets/sudoku4x4/model.safetensors"),
    "the kit's, imported": ("KIT/x.py", "HERE/lib", "dlmrl_kit/x.py"),
    "an installed plugin's": ("HERE/venv/lib/python3.12/site-packages/acme/steps.py", None, "acme/steps.py"),
    "of Debian": ("HERE/usr/dist-packages/acme/steps.py", None, "acme/steps.py"),
    "of a checkpoint of the hub": ("HUB/models--a--b/snapshots/f00/x.json", None, "models--a--b/snapshots/f00/x.json"),
    "of a module on the Python path": ("HERE/code/acme/steps.py", "HERE/code", "acme/steps.py"),
    "data": ("HERE/data/d.jsonl", None, "HERE/data/d.jsonl"),
    "data beside imported code": ("HERE/data/d.jsonl", "HERE/code", "HERE/data/d.jsonl"),
}
"""Files, the folders that they are imported from, and the names under which they are compared."""


@pytest.mark.parametrize("which", PLACES)
def test_files_are_known_by_what_they_belong_to(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = Path(identity.__file__).parents[1]
    for place in (tmp_path / "one", tmp_path / "other"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
        here = {"KIT": str(kit), "HERE": str(place), "HUB": str(place / "hub")}

        def filled(text: str, here: dict[str, str] = here) -> str:
            return functools.reduce(lambda text, item: text.replace(*item), here.items(), text)

        path, root, name = PLACES[which]
        assert lasting_name(Path(filled(path)), None if root is None else Path(filled(root))) == filled(name)


def test_two_files_of_one_name_are_both_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / place / "site-packages" / "x.json" for place in ("one", "other")]
    for path in files:
        path.parent.mkdir(parents=True)
        path.write_text(str(path))
    loaded = recipe()
    monkeypatch.setattr(identity, "files_of", lambda built: set(files))
    assert identity_of(loaded, loaded.build_algorithm(), torch.device("cpu"))["files"].keys() == set(map(str, files))


def as_before(known: Identity) -> Identity:
    """An identity as earlier versions wrote it: with absolute names, here those of an installation that is gone."""
    gone = {n: n if Path(n).is_absolute() else f"/old/venv/lib/site-packages/{n}" for n in known["files"]}
    return {**known, "files": {gone[name]: digest for name, digest in known["files"].items()}}


def test_a_run_goes_on_with_a_moved_installation(tmp_path: Path) -> None:
    """Also one that an earlier version began, which knew the files of the kit by absolute paths."""
    folder = tmp_path / "run"
    sets = ["Pretrained.path = 'shipped:sudoku4x4'", *SETS]
    stopped(lambda: train(recipe(sets=sets), folder), 1)
    about = json.loads((folder / "run.json").read_text())
    assert not any(Path(name).is_absolute() for name in about["identity"]["files"])
    earlier = as_before(about["identity"])
    assert changes(earlier, about["identity"]) == []
    (folder / "run.json").write_text(json.dumps({**about, "identity": earlier}))
    checkpoint = checkpoints(folder)[-1][1]
    state = json.loads((checkpoint / STATE).read_text())
    (checkpoint / STATE).write_text(json.dumps({**state, "identity": earlier}))
    sums = json.loads((checkpoint / CHECKSUMS).read_text())
    (checkpoint / CHECKSUMS).write_text(json.dumps({**sums, STATE: file_digest(checkpoint / STATE)}))
    stopped(lambda: resume(folder), 2)  # now the checkpoint has other names than the record
    stopped(lambda: resume(folder), 3)
    changed = {**earlier, "files": {name: "0" for name in earlier["files"]}}
    assert {str(change) for change in changes(changed, about["identity"])} == {
        f"{name} has changed" for name in about["identity"]["files"]
    }


def test_files_of_tasks_in_a_mixture_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_data(tmp_path / "own", "identity_mixed", monkeypatch)
    loaded = own.recipe()
    algorithm = loaded.build_algorithm()
    algorithm.task = Mixture([algorithm.task])
    assert str(own.data) in identity_of(loaded, algorithm, torch.device("cpu"))["files"]


def test_the_base_of_an_adapter_counts(tmp_path: Path) -> None:
    sets = ["Pretrained.lora_rank = 2", "Trainer.updates = 1", "Trainer.eval_every = 0"]
    train(recipe(sets=sets), tmp_path / "run")
    loaded = recipe(sets=[f"Pretrained.path = '{tmp_path / 'run' / 'adapter'}'"])
    files = identity_of(loaded, loaded.build_algorithm(), torch.device("cpu"))["files"]
    assert {str(tmp_path / "run" / "adapter" / "adapter_model.safetensors")} < set(files)
    assert str(Path(model_path()) / "model.safetensors") in files


def other_threads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "get_num_threads", lambda: 7)


def other_kit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(identity, "VERSION", "9.9.9")


def other_torch(patch: pytest.MonkeyPatch) -> None:
    original = identity.metadata.version
    patch.setattr(identity.metadata, "version", lambda name: "9.9" if name == "torch" else original(name))


def other_plugin(patch: pytest.MonkeyPatch) -> None:
    # A plugin by the name of the kit's package: the recipe uses components of it.
    patch.setattr(identity, "load_plugins", lambda: (Plugin("acme", "dlmrl_kit.x", "acme-steps", "0.2"),))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_threads, "threads was 1, now 7"),
        (other_kit, r"package dlmrl_kit was \S+, now 9.9.9"),
        (other_torch, r"package torch was \S+, now 9.9"),
        (other_plugin, "package acme-steps was not there, now 0.2"),
    ],
)
def test_a_changed_package_or_machine_is_refused_and_can_be_accepted(
    change: Callable[[pytest.MonkeyPatch], None],
    named: str,
    part_done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copied(part_done, tmp_path)
    change(monkeypatch)
    with pytest.raises(CheckpointError, match=f"would not go on as what it was: {named}; undo that, .*--accept-"):
        resume(folder)
    told = Told()
    stopped(lambda: resume(folder, observer=told, accept_changes=True), 2)
    assert any("accepted, and recorded in run.json" in text for text in told.messages)
    [entry] = json.loads((folder / "run.json").read_text())["changes"]
    assert entry["update"] == 1
    assert len(entry["changed"]) == 1
    stopped(lambda: resume(folder), 2)  # accepted once, it is what the run depends on


class Told(RunObserver):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to / "run"))


SETS = ["Trainer.updates = 4", "Trainer.eval_every = 0"]


@pytest.fixture(scope="module")
def part_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four updates that was stopped after the first one."""
    folder = tmp_path_factory.mktemp("part") / "done"
    stopped(lambda: train(recipe(sets=SETS), folder), 1)
    return folder


def test_checkpoints_hold_what_the_run_depends_on(part_done: Path) -> None:
    about = json.loads((part_done / "run.json").read_text())
    assert identity_in(checkpoints(part_done)[-1][1]) == about["identity"]
    assert about["identity"]["machine"] == {"device": "cpu", "threads": "1"}
    assert {"dlmrl_kit", "torch", "transformers"} <= about["identity"]["packages"].keys()
    assert about["identity"]["recipe"]["Trainer.updates"] == "4"


def test_without_its_record_a_run_is_compared_with_its_checkpoint(
    part_done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(part_done, tmp_path)
    (folder / "run.json").unlink()
    with monkeypatch.context() as patch:
        other_threads(patch)
        with pytest.raises(CheckpointError, match="threads was 1, now 7"):
            resume(folder)
    stopped(lambda: resume(folder), 2)


def test_a_checkpoint_of_another_run_is_refused(part_done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    stopped(lambda: train(recipe(sets=[*SETS, "Trainer.seed = 5"]), folder), 1)
    checkpoint = folder / "checkpoints" / "update-000001"
    shutil.rmtree(checkpoint)
    shutil.copytree(part_done / "checkpoints" / "update-000001", checkpoint)
    with pytest.raises(
        CheckpointError, match=r"update-000001 cannot be read \(it is another run's: Trainer.seed was 5"
    ):
        resume(folder, accept_changes=True)


@pytest.mark.parametrize("how", ["edited", "--set"])
def test_a_changed_setting_is_refused_by_name(how: str, part_done: Path, tmp_path: Path) -> None:
    folder = copied(part_done, tmp_path)
    path, sets = folder / "recipe.gin", []
    if how == "edited":
        path.write_text(path.read_text().replace("Trainer.learning_rate = 0.01", "Trainer.learning_rate = 0.002"))
    else:
        sets = ["Trainer.learning_rate = 0.002"]
    text = path.read_text()
    with pytest.raises(CheckpointError, match=r"Trainer\.learning_rate was 0\.01, now 0\.002; undo that"):
        resume(folder, sets=sets)
    assert path.read_text() == text
    resume(folder, sets=sets, accept_changes=True)
    assert [rate for _, rate in read_metrics(folder)["learning_rate"]] == pytest.approx([0.01, *[0.002] * 3])
    assert "Trainer.learning_rate = 0.002" in path.read_text()


def test_a_longer_run_equals_one_that_was_as_long_from_the_start(tmp_path: Path) -> None:
    sets = ["Trainer.updates = 2", "Trainer.eval_every = 0"]
    train(recipe(sets=sets), tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()
    told = Told()
    resume(tmp_path / "run", sets=["Trainer.updates = 4"], observer=told)
    assert [text for text in told.messages if "Trainer.updates was 2, now 4, recorded in run.json" in text]
    train(recipe(sets=SETS), tmp_path / "whole")
    longer, whole = outcome(tmp_path / "run"), outcome(tmp_path / "whole")
    for name in ("recipe", "model", "weights.safetensors", "optimiser.safetensors", "state.json"):
        assert longer[name] == whole[name], name
    [entry] = json.loads((tmp_path / "run" / "run.json").read_text())["changes"]
    assert entry["changed"] == ["Trainer.updates was 2, now 4"]
    assert entry["update"] == 2
    with pytest.raises(CheckpointError, match=r"update-000004 is of more updates than Trainer\.updates = 3; set"):
        resume(tmp_path / "run", sets=["Trainer.updates = 3"])


@pytest.mark.thorough
@pytest.mark.parametrize("schedule", ["cosine", "linear", "polynomial"])
def test_the_schedule_follows_the_new_length(schedule: str, tmp_path: Path) -> None:
    sets = [f"Trainer.schedule = {schedule!r}", "Trainer.eval_every = 0", "Trainer.minibatches = 1"]
    train(recipe(sets=[*sets, "Trainer.updates = 2"]), tmp_path / "run")
    told = Told()
    resume(tmp_path / "run", sets=["Trainer.updates = 4"], observer=told)
    train(recipe(sets=[*sets, "Trainer.updates = 4"]), tmp_path / "whole")
    rates, expected = (read_metrics(tmp_path / name)["learning_rate"] for name in ("run", "whole"))
    assert rates[2:] == expected[2:]
    assert rates[2][1] > rates[1][1] * 0.5
    assert any(f"the learning rate goes on with {expected[2][1]:.3g}" in text for text in told.messages)


def test_changed_data_is_refused_accepted_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, folder = own_data(tmp_path / "own", "identity_run", monkeypatch), tmp_path / "run"
    stopped(lambda: train(own.recipe(), folder), 1)
    own.write_data("4213" * 4)
    with pytest.raises(CheckpointError, match=f"{own.data} has changed; undo that"):
        resume(folder)
    resume(folder, accept_changes=True)
    [entry] = json.loads((folder / "run.json").read_text())["changes"]
    assert entry["changed"] == [f"{own.data} has changed"]
    assert resume(folder).updates == 2


def test_a_finished_run_is_reported_whatever_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(sets=["Trainer.updates = 1", "Trainer.eval_every = 0"]), tmp_path / "run")
    other_kit(monkeypatch)
    other_threads(monkeypatch)
    assert resume(tmp_path / "run").updates == 1
