"""Pre-training runs: reproducible, killed and resumed, and what is refused."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.own_data import own_data
from support.pretraining import TINY, tiny
from support.processes import killed, process, spread, train_file, trained_alone
from support.runs import leftovers, outcome

from dlmrl_kit.core.errors import CheckpointError, RecipeError, TrainingError, UserError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion
from dlmrl_kit.pretraining.demonstrations import batch_of
from dlmrl_kit.pretraining.run import PretrainRun, pretrain, step_noise
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import evaluate_path, train
from dlmrl_kit.training.checkpoint import checkpoints


class Losses(RunObserver):
    """Keeps the losses it is told."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.losses: list[tuple[int, float]] = []

    def on_start(
        self, *, folder: Path, recipe: str, total_updates: int, first_update: int, info: dict[str, Any]
    ) -> None:
        self.first = first_update

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        self.losses.append((update, metrics["loss"]))


def test_every_step_has_examples_and_masks_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over the 40 examples, each mask drawn for its step alone."""
    run = PretrainRun(tiny("MaskedDiffusion.batch_size = 40").build(), tmp_path, "tiny", RunObserver())
    data = run.start()
    prompts: list[list[list[int]]] = []
    draws: list[tuple[int, ...]] = []

    def objective(policy: Any, prompt: torch.Tensor, mask: Any, completion: Any, seed: Any, spread: Any, _: Any) -> Any:
        prompts.append(prompt.tolist())
        draws.append((*seed.tolist(), *spread.tolist()))
        return sum(p.sum() for p in policy.parameters()) * 0

    monkeypatch.setattr(run.settings, "objective", objective)
    for step in (0, 1, 2, 1):
        run._step(data, step)
    assert [sorted(rows) for rows in prompts] == [sorted(data.prompts)] * 4
    assert prompts[1] == prompts[3] != prompts[0]
    assert draws[1] == draws[3]
    assert len(set(draws)) == 3
    assert len({number for drawn in draws for number in drawn}) == 3 * 80  # a seed and a share for each row


def test_thirty_steps_lower_the_loss(tmp_path: Path) -> None:
    run = PretrainRun(
        tiny("MaskedDiffusion.steps = 30", "MaskedDiffusion.learning_rate = 0.02").build(),
        tmp_path,
        "tiny",
        RunObserver(),
    )
    data = run.start()

    def loss() -> float:
        number = len(data.prompts)
        rows = torch.arange(number)
        seed, spread = step_noise(rows, number, 0, 0)
        prompt, mask, completion, _ = batch_of(data, rows, seed, run.policy, run.settings, run.length)
        with torch.no_grad():
            return run.settings.objective(run.policy, prompt, mask, completion, seed, spread).item()

    before = loss()
    for step in range(30):
        run._step(data, step)
    assert before > 2.5  # about log 24, the vocabulary
    assert loss() < 0.7 * before


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.gin"
    path.write_text(tiny().text())
    return path


@pytest.fixture(scope="module")
def whole(gin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trained_alone(gin_file, folder)
    return folder


@pytest.mark.thorough
def test_a_run_is_reproducible_and_tells_its_losses(gin_file: Path, whole: Path, tmp_path: Path) -> None:
    told = Losses()
    result = pretrain(load_recipe(gin_file), tmp_path / "again", observer=told)
    assert outcome(tmp_path / "again") == outcome(whole)
    assert told.first == 0
    assert [update for update, _ in told.losses] == [2, 5, 8]
    assert told.losses[-1][1] == result.loss
    assert {path.name for path in whole.iterdir()} == {"recipe.gin", "run.json", "checkpoints", "model", "result.json"}
    assert [done for done, _ in checkpoints(whole)] == [8, 9]
    stored = json.loads((whole / "result.json").read_text())
    assert (stored["loss"], stored["steps"]) == (result.loss, 9)
    assert stored["greedy"]["accuracy"] == result.accuracy
    assert stored["sampled"]["pass_at_k"]["8"] == result.pass_at_8
    evaluated = evaluate_path(str(whole), size=4)
    assert evaluated.accuracy == result.accuracy


def test_the_loss_told_is_the_mean_of_the_last_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmrl_kit.pretraining.run.RECENT", 4)
    monkeypatch.setattr(PretrainRun, "_step", lambda self, data, step: float(step))
    told = Losses()
    pretrain(tiny(), tmp_path / "run", observer=told)
    assert told.losses == [(2, 1.0), (5, 3.5), (8, 6.5)]


KILLS = 4


def killed_at(number: int, gin_file: Path, folder: Path) -> None:
    child = process(train_file, gin_file, folder, number)
    child.join()
    assert killed(child.exitcode)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.thorough) for part in range(1, KILLS))])
def test_killed_at_a_write(part: int, gin_file: Path, whole: Path, tmp_path: Path) -> None:
    total = int((whole.parent / "writes").read_text())
    killed_at(list(spread(total, KILLS))[part], gin_file, tmp_path / "run")
    pretrain(load_recipe(gin_file), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole)


@pytest.mark.slow
def test_killed_at_every_write(gin_file: Path, whole: Path, tmp_path: Path) -> None:
    for number in range(1, int((whole.parent / "writes").read_text()) + 1):
        folder = tmp_path / str(number)
        killed_at(number, gin_file, folder)
        pretrain(load_recipe(gin_file), folder)
        assert outcome(folder) == outcome(whole), f"killed at write {number}"
        assert [name for name in leftovers(folder) if (folder / name).is_dir()] == [], f"killed at write {number}"


def test_killed_at_a_random_moment(gin_file: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = process(train_file, gin_file, folder, 0)
    while child.is_alive() and not (folder / "recipe.gin").exists():
        time.sleep(0.002)
    child.join(random.Random(1).uniform(0, 0.3))
    child.kill()
    child.join()
    pretrain(load_recipe(gin_file), folder)
    assert outcome(folder) == outcome(whole)


def test_a_finished_run_is_reported_again(gin_file: Path, whole: Path, tmp_path: Path) -> None:
    folder, told = tmp_path / "run", Losses()
    pretrain(load_recipe(gin_file), folder)
    before = (folder / "model/model.safetensors").read_bytes()
    result = pretrain(load_recipe(gin_file), folder, observer=told)
    assert (told.first, told.losses) == (9, [])
    assert result.loss == json.loads((whole / "result.json").read_text())["loss"]
    assert (folder / "model/model.safetensors").read_bytes() == before
    assert outcome(folder) == outcome(whole)


def test_folders_and_recipes_that_do_not_fit_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a run of another recipe; choose another folder"):
        pretrain(tiny("MaskedDiffusion.seed = 1"), whole)
    with pytest.raises(RecipeError, match="egspo is a training recipe: run it with 'dlmrl train egspo'"):
        pretrain(load_recipe("egspo"), tmp_path / "run")
    with pytest.raises(RecipeError, match="pretrain_sudoku4x4 is a recipe for Pretraining, not for training"):
        train(load_recipe("pretrain_sudoku4x4"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_recipe_imports_goes_on_where_imports_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "imports.gin"
    path.write_text("import json\n" + tiny("MaskedDiffusion.steps = 1").text(header=False))
    for _ in range(2):
        pretrain(load_recipe(path, allow_imports=True), tmp_path / "run")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MaskedDiffusion.objective
    monkeypatch.setattr(MaskedDiffusion, "objective", lambda *given: original(*given) * torch.nan)
    with pytest.raises(TrainingError, match="pre-training step 0: loss nan"):
        pretrain(tiny(), tmp_path / "run")
    assert checkpoints(tmp_path / "run") == []
    monkeypatch.undo()
    pretrain(tiny("MaskedDiffusion.seed = 1"), tmp_path / "run")  # a failed start does not occupy the folder


def test_the_reward_is_tried_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_data(tmp_path / "own", "pretraining_reward", monkeypatch)
    own.reward.write_text("def score(completion, example):\n    return 'a text'\n")
    monkeypatch.setattr(PretrainRun, "_step", lambda *_: pytest.fail("a step was taken"))
    sets = [f"JsonLines.path = '{own.data}'", "JsonLines.reward = 'pretraining_reward:score'", *TINY]
    sets = ["Pretraining.task = @JsonLines()", "Pretraining.demonstrator = @Answers()"] + [
        text for text in sets if "Sudoku" not in text
    ]
    with pytest.raises(UserError, match="pretraining_reward:score returned reward = 'a text'"):
        pretrain(load_recipe("pretrain_sudoku4x4", sets=sets), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_model_is_written_before_it_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more memory")

    with monkeypatch.context() as patch:
        patch.setattr("dlmrl_kit.pretraining.run.evaluate", evaluate)
        with pytest.raises(RuntimeError, match="no more memory"):
            pretrain(tiny("MaskedDiffusion.steps = 1"), tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert pretrain(tiny("MaskedDiffusion.steps = 1"), tmp_path / "run").steps == 1


def test_a_run_is_made_longer_and_that_is_recorded(tmp_path: Path) -> None:
    constant = ("MaskedDiffusion.schedule = 'constant'", "MaskedDiffusion.warmup_steps = 0")
    pretrain(tiny("MaskedDiffusion.steps = 3", *constant), tmp_path / "run")
    pretrain(tiny("MaskedDiffusion.steps = 6", *constant), tmp_path / "run")
    pretrain(tiny("MaskedDiffusion.steps = 6", *constant), tmp_path / "whole")
    assert outcome(tmp_path / "run")["model"] == outcome(tmp_path / "whole")["model"]
    [entry] = json.loads((tmp_path / "run" / "run.json").read_text())["changes"]
    assert (entry["update"], entry["changed"]) == (3, ["MaskedDiffusion.steps was 3, now 6"])
    other = tiny("MaskedDiffusion.steps = 6", "MaskedDiffusion.seed = 2", *constant)
    pretrain(other, tmp_path / "run", accept_changes=True)


def test_pretraining_says_how_many_examples_there_are(tmp_path: Path) -> None:
    run = PretrainRun(tiny().build(), tmp_path, "tiny", RunObserver())
    told: dict[str, Any] = {}
    run.observer.on_start = lambda **given: told.update(given["info"])  # type: ignore[method-assign]
    run.start()
    task = run.built.task
    assert (told["pretrain_examples"], told["heldout_examples"]) == (task.size("pretrain"), task.size("heldout"))
