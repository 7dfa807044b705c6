"""Demonstrations: how they are drawn and encoded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pretraining import GIVEN, policy_of, tiny

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.demonstrators.answers import Answers
from dlmrl_kit.demonstrators.mixed_sudoku_solvers import MixedSudokuSolvers, hasty
from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion
from dlmrl_kit.pretraining.demonstrations import batch_of, encode_demonstrations
from dlmrl_kit.pretraining.run import PretrainRun, pretrain
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.countdown import Countdown
from dlmrl_kit.tasks.sudoku import Sudoku4x4


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
    run = PretrainRun(tiny("MaskedDiffusion.batch_size = 400").build(), tmp_path, "tiny", RunObserver())
    data = run.start()
    seen: Counter[bool] = Counter()

    known = torch.tensor(data.completions)

    def objective(policy: Any, prompt: Any, mask: Any, completion: torch.Tensor, *noise: Any) -> torch.Tensor:
        right = (completion[:, None] == known[:, 0]).all(-1).any(-1)
        wrong = (completion[:, None] == known[:, 1]).all(-1).any(-1)
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
    rows = torch.arange(6)
    batch = batch_of(data, rows, sample_seeds(6, "cpu", 0), policy, MaskedDiffusion(), 18)
    assert batch.completion_ids.shape == (6, 18)
    assert (batch.completion_ids[:, 16:] == policy.eos_id).all()
    assert bool(batch.counted.all())
    assert bool(batch.prompt_mask.all())
    torch.testing.assert_close(data.probability, torch.tensor([[0.3, 0.7]] * 6))
    for index in range(6):
        example = task.example("pretrain", index)
        found = policy.tokenizer.batch_decode(data.completions[index])
        assert found == [example.answer, hasty(example.prompt)]
        assert policy.tokenizer.decode(batch.completion_ids[index, :16]) in found
        assert policy.tokenizer.decode(batch.prompt_ids[index]) == example.prompt


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["LowConfidence.completion_length = 12"], "a demonstration has 16 tokens, more than the sampler's compl"),
        (
            ["CharacterLlama.characters = '123_:'"],
            "no tokens for '4', in '[1-4]{16}'",
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


def test_too_few_examples_are_the_users_to_fix() -> None:
    task = Countdown(max_value=2, min_target=1, max_target=4, num_pretrain=100)
    with pytest.raises(RecipeError, match=r"num_pretrain is 100, but only \d+ distinct examples were found"):
        encode_demonstrations(task, Answers(), policy_of("0123456789+-*/() =:"), 16)
