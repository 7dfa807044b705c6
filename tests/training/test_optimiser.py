"""Minibatches, learning rate schedules, weight decay, and settings that cannot run."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from support.runs import build, new_run, rollout

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.trainers.base import SCHEDULES
from dlmrl_kit.training.optimiser import build_optimiser


@pytest.mark.parametrize("parts", [1, 2, 4, 5, 6])
def test_a_rollout_is_cut_into_as_many_minibatches_as_asked(parts: int, tmp_path: Path) -> None:
    sets = [f"Trainer.minibatches = {parts}", "Trainer.inner_iterations = 2"]
    run = new_run(tmp_path, sets=sets)
    trajectory = rollout(run)
    trajectory["row"] = torch.arange(6)

    def rows(update: int) -> list[list[int]]:
        return [piece["row"].tolist() for piece in run.update.minibatches(trajectory, update)]

    found = rows(0)
    assert len(found) == 2 * parts
    assert run.trainer.optimiser_steps == run.trainer.updates * 2 * parts
    for iteration in (found[:parts], found[parts:]):
        assert sorted(itertools.chain(*iteration)) == list(range(6))
        assert max(map(len, iteration)) - min(map(len, iteration)) <= 1
    assert rows(0) == found
    orders = [tuple(itertools.chain(*rows(update))) for update in range(4)]
    assert len({order[:6] for order in orders} | {orders[0][6:]}) == 5


def test_schedules_end_with_the_run(tmp_path: Path) -> None:
    sets = ["Trainer.minibatches = 4", "Trainer.updates = 3", "Trainer.schedule = 'cosine'", "Trainer.warmup_steps = 2"]
    run = new_run(tmp_path / "run", sets=sets, uses=["logger=none"])
    used: list[float] = []
    run.update.optimiser.register_step_pre_hook(lambda optimiser, *_: used.append(optimiser.param_groups[0]["lr"]))
    (tmp_path / "run").mkdir()
    run.run()
    expected = [s / 2 if s < 2 else (1 + math.cos(math.pi * (s - 2) / 10)) / 2 for s in range(12)]
    assert used == pytest.approx([0.01 * share for share in expected])
    assert run.update.optimiser.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_runs(name: str) -> None:
    p = torch.nn.Parameter(torch.ones(2, 2))
    warmup = 0 if name == "constant" else 2
    optimiser, scheduler = build_optimiser(
        [p], learning_rate=0.1, betas=(0.9, 0.99), weight_decay=0, schedule=name, warmup_steps=warmup, total_steps=8
    )
    rates = []
    for _ in range(8):
        rates.append(scheduler.get_last_lr()[0])
        p.grad = torch.ones(2, 2)
        optimiser.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([0.1] * 3 if name == "constant" else [0.0, 0.05, 0.1])
    assert max(rates) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("schedule = 'reduce_lr_on_plateau'", "schedule must be one of constant, constant_with_warmup, linear"),
        ("schedule = 'cosine_with_min_lr'", "schedule must be one of"),
        (
            "warmup_steps = 3",
            r"warmup_steps must be 0 with schedule 'constant' \(or take constant_with_warmup\), got 3",
        ),
        ("minibatches = 7", "minibatches must be at most the 6 samples of a rollout"),
        ("precision = 'float16'", "precision must be"),
    ],
)
def test_settings_that_cannot_run_are_refused_before_anything_runs(binding: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"Trainer.{message}"):
        build(sets=[f"Trainer.{binding}"])


def test_weight_decay_is_for_matrices_only() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimiser, _ = build_optimiser(
        [matrix, vector],
        learning_rate=0.1,
        betas=(0.9, 0.99),
        weight_decay=0.5,
        schedule="constant",
        warmup_steps=0,
        total_steps=1,
    )
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimiser.step()
    assert torch.equal(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(vector, torch.ones(2))
