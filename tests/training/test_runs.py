"""Whole runs: the run folder, bit-identical resume after SIGKILL, and the resolved recipe."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.processes import process, train_file
from support.runs import stopped
from support.shipped_runs import tiny_recipe

from dlmrl_kit.core.errors import CheckpointError, RecipeError
from dlmrl_kit.policies.checkpoint_files import SHIPPED
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import evaluate_path, resume, train
from dlmrl_kit.training.checkpoint import checkpoints

UNTIMED = ("seconds", "cpu_seconds", "tokens_per_second")
SCHEDULED = ["Trainer.schedule = 'cosine'", "Trainer.warmup_steps = 2", "Trainer.updates = 6"]


def outcome(folder: Path) -> dict[str, object]:
    """Everything of a finished run that must not depend on interruptions."""
    last = checkpoints(folder)[-1][1]
    rows = [line for line in (folder / "metrics.csv").read_text().splitlines() if line.split(",")[1] not in UNTIMED]
    evaluations = json.loads((folder / "evaluations.json").read_text())
    state = json.loads((last / "state.json").read_text())
    del state["identity"]["recipe"]["Trainer.checkpoint_every"]
    return {
        "weights": {k: v.tolist() for k, v in load_file(folder / "model/model.safetensors").items()},
        "optimiser": {k: v.tolist() for k, v in load_file(last / "optimiser.safetensors").items()},
        "state": state,
        "metrics": sorted(rows),
        "evaluations": evaluations,
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_recipe(sets=SCHEDULED), folder)
    return folder


def test_a_run_folder_holds_what_was_promised(uninterrupted: Path) -> None:
    for name in ("recipe.gin", "metrics.csv", "evaluations.json", "result.json", "curve.png", "model/config.json"):
        assert (uninterrupted / name).is_file(), name
    assert [done for done, _ in checkpoints(uninterrupted)] == [5, 6]
    assert sorted(map(int, json.loads((uninterrupted / "evaluations.json").read_text()))) == [0, 2, 4, 6]
    assert not list(uninterrupted.rglob(".*tmp*"))
    before = load_file(SHIPPED / "sudoku4x4" / "model.safetensors")
    after = load_file(uninterrupted / "model/model.safetensors")
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_the_resolved_recipe_reproduces_the_run(uninterrupted: Path, tmp_path: Path) -> None:
    train(load_recipe(str(uninterrupted / "recipe.gin")), tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(uninterrupted)


@pytest.mark.thorough
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_run_stopped_between_updates_resumes_to_the_same_result(
    stop_after: int, uninterrupted: Path, tmp_path: Path
) -> None:
    tiny = tiny_recipe(sets=[*SCHEDULED, "Trainer.checkpoint_every = 2"])
    stopped(lambda: train(tiny, tmp_path / "run"), stop_after, KeyboardInterrupt)
    resume(tmp_path / "run")
    whole = outcome(uninterrupted)
    assert outcome(tmp_path / "run") == whole


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_run_killed_at_a_random_moment_resumes_to_the_same_result(
    seed: int, uninterrupted: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "run", tmp_path / "tiny.gin"
    file.write_text(tiny_recipe(sets=SCHEDULED).text())
    child = process(train_file, file, folder, 0)
    while child.is_alive() and not (folder / "recipe.gin").exists():
        time.sleep(0.005)
    child.join(random.Random(seed).uniform(0.2, 1.8))
    child.kill()
    child.join()
    if not (folder / "result.json").exists():
        resume(folder)
    assert outcome(folder) == outcome(uninterrupted)


def test_a_half_written_checkpoint_is_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny_recipe(), folder)
    whole = outcome(folder)
    broken = folder / "checkpoints" / ".update-000004.tmp1"
    broken.mkdir()
    (broken / "weights.safetensors").write_bytes(b"half")
    resume(folder)  # a finished run: nothing is trained, everything is reported again
    assert outcome(folder) == whole


@pytest.mark.thorough
def test_a_run_with_an_adapter_resumes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(tiny_recipe(sets=["Pretrained.lora_rank = 2"]), tmp_path / name)
    done, newest = checkpoints(tmp_path / "two")[-1]
    assert done == 3
    assert all("lora_" in name for name in load_file(newest / "weights.safetensors"))
    shutil.rmtree(newest)
    resume(tmp_path / "two")
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


def test_folders_and_recipes_that_do_not_fit_are_refused(uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="already holds a run"):
        train(tiny_recipe(), uninterrupted)
    with pytest.raises(RecipeError, match="dlmrl pretrain pretrain_sudoku4x4"):
        train(load_recipe("pretrain_sudoku4x4"), tmp_path / "a")
    with pytest.raises(CheckpointError, match="holds no run"):
        resume(tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_policy_is_refused(tmp_path: Path) -> None:
    train(tiny_recipe(), tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.gin"
    recipe.write_text(recipe.read_text().replace("Pretrained.lora_rank = 0", "Pretrained.lora_rank = 2"))
    with pytest.raises(CheckpointError, match=r"Pretrained\.lora_rank was 0, now 2"):
        resume(tmp_path / "run")
    with pytest.raises(CheckpointError, match="names and shapes"):
        resume(tmp_path / "run", accept_changes=True)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "uses",
    [["selector=UniformSteps"], ["sampler=EntropyOrder", "advantage=LeaveOneOut"], ["regulariser=KLK1+KLK2"]],
    ids=" ".join,
)
def test_swapped_recipes_train(uses: list[str], tmp_path: Path) -> None:
    assert train(tiny_recipe("egspo", uses=uses), tmp_path / "run").updates == 3


def test_countdown_trains_with_end_of_text(tmp_path: Path) -> None:
    sets = ["Sampler.completion_length = 12", "Countdown.num_train = 4", "Countdown.num_heldout = 4"]
    recipe = load_recipe(
        "egspo",
        uses=["task=Countdown", "policy=CharacterLlama", "logger=none"],
        sets=[
            *sets,
            "Trainer.updates = 2",
            "Trainer.prompts_per_update = 2",
            "Trainer.eval_size = 4",
            "CharacterLlama.hidden_size = 16",
            "CharacterLlama.num_heads = 2",
        ],
    )
    assert train(recipe, tmp_path / "run").updates == 2


def test_evaluation_of_runs_and_models(uninterrupted: Path, tmp_path: Path) -> None:
    first = evaluate_path(str(uninterrupted), size=4)
    again = evaluate_path(str(uninterrupted / "model"), recipe=str(uninterrupted / "recipe.gin"), size=4)
    assert first == again
    assert first.decoding["temperature"] == 0
    sampled = evaluate_path(str(uninterrupted), size=4, temperature=1.0, samples_per_prompt=4)
    assert set(sampled.pass_at_k) == {1, 2, 4}
    assert sampled.pass_at_k[1] <= sampled.pass_at_k[4]
    with pytest.raises(RecipeError, match="at temperature 0"):
        evaluate_path(str(uninterrupted), size=4, samples_per_prompt=2)
    with pytest.raises(RecipeError, match="unknown split 'test'"):
        evaluate_path(str(uninterrupted), size=4, split="test")
    with pytest.raises(CheckpointError, match="no run or model folder"):
        evaluate_path(str(tmp_path / "nothing"))
