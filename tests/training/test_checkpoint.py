"""Checkpoints hold everything exactly; foreign and damaged ones are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.runs import files, new_run, outcome, prepared, rollout

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import resume
from dlmrl_kit.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from dlmrl_kit.training.start import trained


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
