"""Pre-training: the loss against a loop, demonstrations, runs that die, and what is refused."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import killed, leftovers, outcome, process, spread, train_file, trained_alone

from dlmrl_kit.core.errors import CheckpointError, RecipeError, TrainingError
from dlmrl_kit.core.results import Observer
from dlmrl_kit.demonstrators.answers import Answers
from dlmrl_kit.demonstrators.mixed_sudoku_solvers import MixedSudokuSolvers, hasty
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion
from dlmrl_kit.pretraining.loop import PretrainRun, encode_demonstrations, pretrain
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.countdown import Countdown
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training import evaluate_path, train
from dlmrl_kit.training.checkpoint import checkpoints

TINY = [
    "CharacterLlama.hidden_size = 16",
    "CharacterLlama.num_layers = 1",
    "CharacterLlama.num_heads = 2",
    "Sudoku4x4.num_pretrain = 40",
    "Sudoku4x4.num_heldout = 4",
    "MaskedDiffusion.steps = 9",
    "MaskedDiffusion.batch_size = 16",
    "MaskedDiffusion.checkpoint_every = 4",
    "MaskedDiffusion.log_every = 3",
    "MaskedDiffusion.eval_size = 4",
    "MaskedDiffusion.warmup_steps = 2",
]
GIVEN = "1_3__4_22_4__3_1:"


def tiny(*sets: str) -> Recipe:
    return load_recipe("pretrain_sudoku4x4", sets=[*TINY, *sets])


def policy_of(characters: str = "1234_:", hidden: int = 16) -> Policy:
    torch.manual_seed(0)
    return CharacterLlama(characters, hidden_size=hidden, num_layers=1, num_heads=2).load()


# ------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_the_weighted_cross_entropy_of_the_masked_tokens() -> None:
    policy, rows, width, length, least = policy_of(), 5, 3, 6, 0.25
    policy.model.get_input_embeddings().weight.data.mul_(20)
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(4, 10, (rows, width), generator=generator)
    mask = torch.arange(width) >= torch.tensor([0, 1, 2, 0, 1])[:, None]
    prompt = prompt.masked_fill(~mask, policy.pad_id)
    completion = torch.randint(4, 10, (rows, length), generator=generator)
    seen: list[tuple[torch.Tensor, ...]] = []
    handle = policy.register_forward_pre_hook(lambda _, given: seen.append(given))
    found = MaskedDiffusion(min_mask=least).objective(
        policy, prompt, mask, completion, torch.Generator().manual_seed(8)
    )
    handle.remove()

    replayed = torch.Generator().manual_seed(8)
    shift = torch.rand(1, generator=replayed).item()
    noise = torch.rand(rows, length, generator=replayed)
    levels = [max((shift + row / rows) % 1, least) for row in range(rows)]
    hidden = [[noise[row, i].item() < levels[row] for i in range(length)] for row in range(rows)]
    assert least in levels
    assert max(levels) > 0.7
    total = 0.0
    for row in range(rows):
        state = [policy.mask_id if hidden[row][i] else int(completion[row, i]) for i in range(length)]
        ids = [*prompt[row][mask[row]].tolist(), *state]  # without the padding
        logits = policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -length:].double()
        for i in range(length):
            if hidden[row][i]:
                total += -logits[i].log_softmax(-1)[completion[row, i]].item() / levels[row]
    assert found.item() == pytest.approx(total / (rows * length), rel=1e-5)

    ((ids, _, positions),) = seen
    assert torch.equal(ids[:, :width], prompt)  # never masked
    assert positions.tolist() == [[False] * width + hidden[row] for row in range(rows)]


def test_masking_levels_are_spread_over_the_batch() -> None:
    """The level of each of 1000 rows lies in a thousandth of (0, 1] of its own: the number masked is hardly noisy."""
    policy = policy_of()
    seen: list[torch.Tensor] = []
    policy.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    prompt = torch.full((1000, 1), 4)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            MaskedDiffusion().objective(policy, prompt, torch.ones(1000, 1).bool(), prompt.expand(-1, 8), generator)
    for positions in seen:
        masked = positions[:, 1:].float().mean(-1)
        assert masked.mean().item() == pytest.approx(0.5, abs=0.02)
        assert masked.std().item() == pytest.approx(math.sqrt(1 / 12 + 1 / 48), abs=0.02)  # uniform, then binomial
        fifths = masked.roll(-int(masked.argmin())).reshape(5, 200).mean(-1)  # levels rise from row to row
        assert (fifths[1:] - fifths[:-1]).abs().min() > 0.1
    assert not torch.equal(seen[0], seen[1])


def test_a_batch_in_which_nothing_is_masked_costs_nothing() -> None:
    policy = policy_of()
    prompt, completion = torch.full((1, 2), 4), torch.full((1, 1), 5)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        loss = MaskedDiffusion(min_mask=0.01).objective(policy, prompt, torch.ones(1, 2).bool(), completion, generator)
        replayed = torch.Generator().manual_seed(seed)
        if torch.rand(1, generator=replayed) <= torch.rand(1, 1, generator=replayed):
            assert loss.item() == 0
            loss.backward()
            return
    pytest.fail("no such batch")


# ------------------------------------------------------------------------------------------- demonstrations


def test_the_hasty_solver_fills_rows_in_ascending_order() -> None:
    assert hasty(GIVEN) == "1234" + "1432" + "2143" + "2341"
    assert hasty("________________:") == "1234" * 4
    assert hasty("4321____1_______:") == "4321" + "1234" + "1234" + "1234"
    task = Sudoku4x4(4, 8, num_train=50)
    for index in range(50):
        puzzle = task.example("train", index).prompt
        for row in range(4):
            given, filled = puzzle[4 * row : 4 * row + 4], hasty(puzzle)[4 * row : 4 * row + 4]
            missing = sorted(set("1234") - set(given))
            assert [new for old, new in zip(given, filled, strict=True) if old == "_"] == missing
            assert all(old in ("_", new) for old, new in zip(given, filled, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_solutions_are_right_as_often_as_asked(share: float) -> None:
    example = Example(GIVEN, "1234" * 4)
    both = MixedSudokuSolvers(share).demonstrations(example)
    assert both == [(example.answer, share), (hasty(GIVEN), 1 - share)]
    assert sum(p for _, p in both) == 1
    assert Answers().demonstrations(example) == [(example.answer, 1.0)]


def test_demonstrations_are_drawn_as_often_as_they_are_probable(tmp_path: Path, monkeypatch: Any) -> None:
    run = PretrainRun(tiny("MaskedDiffusion.batch_size = 400").build(), tmp_path, "tiny", Observer())
    data = run.start()
    seen: Counter[bool] = Counter()

    def objective(policy: Any, prompt: Any, mask: Any, completion: torch.Tensor, generator: Any) -> torch.Tensor:
        right = (completion[:, None] == data.completion_ids[:, 0]).all(-1).any(-1)
        wrong = (completion[:, None] == data.completion_ids[:, 1]).all(-1).any(-1)
        assert bool((right | wrong).all())
        for a, b in zip(right.tolist(), wrong.tolist(), strict=True):
            if a != b:  # haste is not right here
                seen[a] += 1
        return sum(p.sum() for p in policy.parameters()) * 0

    monkeypatch.setattr(run.settings, "objective", objective)
    for step in range(4):
        run._step(data, step)
    total = sum(seen.values())
    assert total > 1000
    assert seen[True] / total == pytest.approx(0.4, abs=0.06)


def test_demonstrations_are_encoded_and_filled_with_end_of_text() -> None:
    policy, task = policy_of(), Sudoku4x4(4, 8, num_pretrain=6)
    data = encode_demonstrations(task, MixedSudokuSolvers(0.3), policy, 18)
    assert data.completion_ids.shape == (6, 2, 18)
    assert (data.completion_ids[..., 16:] == policy.eos_id).all()
    torch.testing.assert_close(data.probability, torch.tensor([[0.3, 0.7]] * 6))
    for index in range(6):
        example = task.example("pretrain", index)
        found = policy.tokenizer.batch_decode(data.completion_ids[index, :, :16])
        assert found == [example.answer, hasty(example.prompt)]
        assert policy.tokenizer.decode(data.prompt_ids[index][data.prompt_mask[index]]) == example.prompt


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["LowConfidence.completion_length = 12"], "a demonstration has 16 tokens, more than the sampler's compl"),
        (
            ["CharacterLlama.characters = '123_:'"],
            "no tokens for some of the demonstration '[1-4]{16}'",
        ),
        (["Sudoku4x4.num_pretrain = 0"], "Sudoku4x4: the pretrain split is empty; set num_pretrain"),
        (["Sudoku4x4.num_heldout = 0"], "Sudoku4x4: the heldout split is empty; set num_heldout"),
        (["MaskedDiffusion.schedule = 'greedy'"], "MaskedDiffusion.schedule must be one of"),
        (["MaskedDiffusion.device = 'cqu'"], "device = 'cqu' cannot be used here"),
    ],
)
def test_recipes_that_cannot_run_leave_no_folder(sets: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        pretrain(tiny(*sets), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_sudoku_solvers_solve_nothing_else() -> None:
    example = Countdown(num_pretrain=1).example("pretrain", 0)
    with pytest.raises(RecipeError, match=r"MixedSudokuSolvers solves puzzles of Sudoku4x4, not '\d+ "):
        MixedSudokuSolvers().demonstrations(example)


def test_too_few_puzzles_are_the_users_to_fix() -> None:
    task = Countdown(max_value=2, min_target=1, max_target=4, num_pretrain=100)
    with pytest.raises(RecipeError, match=r"num_pretrain is 100, but only \d+ distinct puzzles were found"):
        encode_demonstrations(task, Answers(), policy_of("0123456789+-*/() =:"), 16)


# ------------------------------------------------------------------------------------------- runs


class Losses(Observer):
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


def test_every_step_has_puzzles_and_masks_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over the 40 puzzles, each mask drawn for its step alone."""
    run = PretrainRun(tiny("MaskedDiffusion.batch_size = 40").build(), tmp_path, "tiny", Observer())
    data = run.start()
    prompts: list[list[list[int]]] = []
    draws: list[float] = []

    def objective(policy: Any, prompt: torch.Tensor, mask: Any, completion: Any, generator: Any) -> torch.Tensor:
        prompts.append(prompt.tolist())
        draws.append(torch.rand(1, generator=generator).item())
        return sum(p.sum() for p in policy.parameters()) * 0

    monkeypatch.setattr(run.settings, "objective", objective)
    for step in (0, 1, 2, 1):
        run._step(data, step)
    assert [sorted(rows) for rows in prompts] == [sorted(data.prompt_ids.tolist())] * 4
    assert prompts[1] == prompts[3] != prompts[0]
    assert draws[1] == draws[3]
    assert len(set(draws)) == 3


def test_thirty_steps_lower_the_loss(tmp_path: Path) -> None:
    run = PretrainRun(
        tiny("MaskedDiffusion.steps = 30", "MaskedDiffusion.learning_rate = 0.02").build(), tmp_path, "tiny", Observer()
    )
    data = run.start()

    def loss() -> float:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            value = run.settings.objective(
                run.policy, data.prompt_ids, data.prompt_mask, data.completion_ids[:, 0], generator
            )
        return value.item()

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


def test_a_run_is_reproducible_and_tells_its_losses(gin_file: Path, whole: Path, tmp_path: Path) -> None:
    told = Losses()
    result = pretrain(load_recipe(gin_file), tmp_path / "again", observer=told)
    assert outcome(tmp_path / "again") == outcome(whole)
    assert told.first == 0
    assert [update for update, _ in told.losses] == [2, 5, 8]
    assert told.losses[-1][1] == result.loss
    assert {path.name for path in whole.iterdir()} == {"recipe.gin", "checkpoints", "model", "result.json"}
    assert [done for done, _ in checkpoints(whole)] == [8, 9]
    stored = json.loads((whole / "result.json").read_text())
    assert (stored["loss"], stored["steps"]) == (result.loss, 9)
    assert stored["greedy"]["accuracy"] == result.accuracy
    assert stored["sampled"]["pass_at_k"]["8"] == result.pass_at_8
    evaluated = evaluate_path(str(whole), size=4)
    assert evaluated.accuracy == result.accuracy


def test_the_loss_told_is_the_mean_of_the_last_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmrl_kit.pretraining.loop.RECENT", 4)
    monkeypatch.setattr(PretrainRun, "_step", lambda self, data, step: float(step))
    told = Losses()
    pretrain(tiny(), tmp_path / "run", observer=told)
    assert told.losses == [(2, 1.0), (5, 3.5), (8, 6.5)]


KILLS = 4


def killed_at(number: int, gin_file: Path, folder: Path) -> None:
    child = process(train_file, gin_file, folder, number)
    child.join()
    assert killed(child.exitcode)


@pytest.mark.parametrize("part", range(KILLS))
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
