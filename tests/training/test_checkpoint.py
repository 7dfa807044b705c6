"""Checkpoints hold everything exactly; foreign and damaged ones are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from support.runs import files, new_run, outcome, prepared, rollout

from dlmrl_kit.core.checksums import file_digest
from dlmrl_kit.core.component import trained
from dlmrl_kit.core.errors import CheckpointError, FileError
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import resume, tensor_files, train
from dlmrl_kit.training.checkpoint import checkpoints, identity_in, intact, load_checkpoint, save_checkpoint


def test_a_checkpoint_holds_everything_exactly(tmp_path: Path) -> None:
    sets = ["Trainer.schedule = 'cosine'", "Trainer.minibatches = 3"]
    run, other = new_run(tmp_path, sets=sets), new_run(tmp_path, sets=sets)
    run.update.learn(prepared(run.update, rollout(run)), 0)
    parts = (run.update.optimiser, run.update.scheduler)
    folder = save_checkpoint(tmp_path, 7, trained(run.policy), *parts, {"skipped": 2, "skipped_in_a_row": 1})
    found = load_checkpoint(folder, trained(other.policy), other.update.optimiser, other.update.scheduler)
    assert found == (7, {"skipped": 2, "skipped_in_a_row": 1})
    for (name, a), (_, b) in zip(run.policy.trainable(), other.policy.trainable(), strict=True):
        assert torch.equal(a, b), name
    a, b = run.update.optimiser.state_dict(), other.update.optimiser.state_dict()
    assert json.dumps(a["param_groups"]) == json.dumps(b["param_groups"])  # tuples have become lists
    assert a["state"].keys() == b["state"].keys() != set()
    for index, entries in a["state"].items():
        for key, value in entries.items():
            assert torch.equal(value, b["state"][index][key])
            assert value.dtype == b["state"][index][key].dtype
    assert run.update.scheduler.last_epoch == other.update.scheduler.last_epoch == 3
    for one in (run, other):
        one.update.learn(prepared(one.update, rollout(one, 1)), 1)
    for (name, p), (_, q) in zip(run.policy.trainable(), other.policy.trainable(), strict=True):
        assert torch.equal(p, q), name
    assert run.update.scheduler.get_last_lr() == other.update.scheduler.get_last_lr()


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for done in (2, 9, 999999, 1000000):
        save_checkpoint(tmp_path, done, trained(run.policy), run.update.optimiser, run.update.scheduler, {})
    assert [done for done, _ in checkpoints(tmp_path)] == [999999, 1000000]  # by number, not by name
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["update-1000000", "update-999999"]


@pytest.mark.thorough
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
        with pytest.raises(CheckpointError, match=r"run would not go on as what it was: Pretrained\."):
            resume(folder)
        with pytest.raises(
            CheckpointError, match=r"update-000005: its weights do not have the names and shapes of the"
        ):
            resume(folder, accept_changes=True)
        assert files(folder) == before


FILES = ["weights.safetensors", "optimiser.safetensors", "state.json", "checksums.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", ["flipped bit", *(pytest.param(damage, marks=pytest.mark.thorough) for damage in ("cut off", "missing"))]
)
def test_damaged_checkpoints_are_named_and_the_one_before_goes_on(
    name: str, damage: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    newest = checkpoints(folder)[-1][1]
    identity = identity_in(newest)
    if damage == "missing":
        (newest / name).unlink()
    elif damage == "cut off":
        (newest / name).write_bytes((newest / name).read_bytes()[:100])
    else:
        content = bytearray((newest / name).read_bytes())
        content[len(content) // 2] ^= 1
        (newest / name).write_bytes(content)
    assert not intact(newest)
    if name.endswith(".safetensors"):  # large files are left to ``load_checkpoint``
        assert identity_in(newest) == identity
    before = files(folder)
    with pytest.raises(
        CheckpointError,
        match=f"{newest} cannot be read .*; remove it to go on from the checkpoint before it, update-000004",
    ):
        resume(folder, accept_changes=True)
    assert files(folder) == before
    if (name, damage) == ("state.json", "missing"):
        shutil.rmtree(newest)
        resume(folder)
        assert outcome(folder) == outcome(whole)


def rewritten(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file of a checkpoint and its checksum, as a program with a fault would write it."""
    (folder / name).write_bytes(content)
    sums = json.loads((folder / "checksums.json").read_text())
    (folder / "checksums.json").write_text(json.dumps({**sums, name: file_digest(folder / name)}))


def without_a_moment(moments: dict[str, torch.Tensor]) -> None:
    del moments["0.exp_avg"]


def of_another_shape(moments: dict[str, torch.Tensor]) -> None:
    moments["0.exp_avg"] = moments["0.exp_avg"].flatten()[:3].clone()


def not_finite(moments: dict[str, torch.Tensor]) -> None:
    moments["0.exp_avg_sq"].view(-1)[0] = torch.inf


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_a_moment, "do not agree about 0.exp_avg"),
        (of_another_shape, r"moment 0\.exp_avg has shape \[3\], its parameter \["),
        (not_finite, r"moment 0\.exp_avg_sq has numbers that are not finite"),
    ],
)
def test_moments_that_are_not_the_parameters_are_refused(
    change: Callable[[dict[str, torch.Tensor]], None], named: str, whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    newest = checkpoints(folder)[-1][1]
    moments = load_file(newest / "optimiser.safetensors")
    change(moments)
    rewritten(newest, "optimiser.safetensors", save(moments))
    with pytest.raises(CheckpointError, match=f"update-000005 cannot be read .*{named}.*before it, update-000004"):
        resume(folder)


def test_weights_that_are_not_finite_are_named(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    newest = checkpoints(folder)[-1][1]
    weights = load_file(newest / "weights.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = torch.nan
    rewritten(newest, "weights.safetensors", save(weights))
    with pytest.raises(CheckpointError, match=f"weight {name} has numbers that are not finite.*remove it to go on"):
        resume(folder)


def test_a_state_that_contradicts_the_name_of_its_folder_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (_, older), (_, newest) = checkpoints(folder)
    shutil.rmtree(newest)
    older.rename(newest)
    with pytest.raises(CheckpointError, match=r"update-000005 cannot be read .it holds the state after 4 updates"):
        resume(folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")])
@pytest.mark.parametrize("at", [2, 4])
def test_a_full_disk_at_a_checkpoint_leaves_the_last_one(
    error: Exception, at: int, gin_file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = tensor_files.save_file

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        original(tensors, path)
        if f"update-00000{at}" in str(path) and path.name == "optimiser.safetensors":
            raise error

    left = f"the last checkpoint, update-00000{at - 2}, is intact" if at > 2 else "there is no checkpoint before it"
    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", save_file)
        with pytest.raises(FileError, match=f"cannot write .*update-00000{at}: .*No space left.*; {left}: make room"):
            train(load_recipe(gin_file), folder)
    assert [done for done, _ in checkpoints(folder)] == ([2] if at > 2 else [])
    resume(folder)
    assert outcome(folder) == outcome(whole)
