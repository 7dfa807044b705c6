"""Bad losses and gradients are skipped; too many in a row stop the run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support.runs import new_run, outcome, prepared, recipe, rollout, weights
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.training import resume, train
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.gradient import Totals
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.update import Rollout, Update

ADVANTAGE, WEIGHT = ("selected", "advantage"), ("selected", "weight")


def test_a_minibatch_with_a_bad_loss_is_skipped_and_nothing_else(tmp_path: Path) -> None:
    def updated(poison: bool) -> tuple[Run, dict[str, float]]:
        run = new_run(tmp_path, sets=["Trainer.schedule = 'linear'"])
        trajectory = prepared(run.update, rollout(run))
        first, second = run.update.minibatches(trajectory, 0)
        if poison:
            second[ADVANTAGE][0, 0] = torch.nan
        parts = [first, second] if poison else [first]
        run.update.minibatches = lambda *_: iter(parts)  # type: ignore[method-assign]
        return run, run.update.learn(trajectory, 0)

    clean, expected = updated(poison=False)
    run, metrics = updated(poison=True)
    assert torch.equal(weights(run.policy), weights(clean.policy))
    torch.testing.assert_close(run.update.optimiser.state_dict(), clean.update.optimiser.state_dict(), rtol=0, atol=0)
    assert run.update.scheduler.last_epoch == 1
    assert (run.update.skipped, run.update.skipped_in_a_row) == (1, 1)
    del metrics["learning_rate"], expected["learning_rate"]
    assert metrics == {**expected, "skipped": 1.0}
    assert all(math.isfinite(value) for value in metrics.values())


class BadGradient(StepPPO):
    """A finite loss with a gradient that is not."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, diagnostics = super().total(tensordict)
        return total + (tensordict["selected", "log_prob"] * 0).sum().sqrt(), diagnostics


def test_a_bad_gradient_of_a_good_loss_is_skipped(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Trainer.minibatches = 1"], swaps=Swaps(loss=BadGradient()))
    update = run.update
    trajectory = prepared(update, rollout(run))
    before, loss = weights(run.policy), update.gradient.accumulate(trajectory, Totals())
    assert math.isfinite(loss)
    assert not all(torch.isfinite(p.grad).all() for p in update.parameters if p.grad is not None)
    update.optimiser.zero_grad()
    metrics = update.learn(trajectory, 0)
    assert metrics["skipped"] == 1
    assert "loss" not in metrics
    assert torch.equal(weights(run.policy), before)
    assert update.optimiser.state_dict()["state"] == {}


def test_only_bad_minibatches_in_a_row_are_too_many(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Trainer.minibatches = 1", "Trainer.max_skipped = 2"])
    good = prepared(run.update, rollout(run))
    bad = good.clone()
    bad[ADVANTAGE].fill_(torch.inf)
    seen = []
    for trajectory in (bad, good, bad, good, good, bad):
        metrics = run.update.learn(trajectory, 0)
        seen.append((metrics["skipped"], run.update.skipped_in_a_row))
    assert seen == [(1, 1), (1, 0), (2, 1), (2, 0), (2, 0), (3, 1)]
    before = weights(run.policy)
    with pytest.raises(TrainingError, match="2 optimiser steps in a row had a non-finite loss"):
        run.update.learn(bad, 0)
    assert torch.equal(weights(run.policy), before)
    assert bool(before.isfinite().all())


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """From now on the rollouts of the updates in ``bad`` have NaN for advantages."""
    original = Update.roll_out

    def roll_out(self: Update, number: int) -> Rollout:
        rollout = original(self, number)
        if number in bad:
            rollout.kept[ADVANTAGE].fill_(torch.nan)
        return rollout

    monkeypatch.setattr(Update, "roll_out", roll_out)


def test_bad_losses_in_a_row_stop_the_run_which_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = recipe(sets=["Trainer.updates = 5", "Trainer.max_skipped = 3"])  # two minibatches per update
    with monkeypatch.context() as patch:
        poisoned(patch, {2})
        assert train(small, tmp_path / "whole").skipped == 2
        poisoned(patch, {2, 3})
        with pytest.raises(TrainingError, match=r"3 optimiser steps in a row had a non-finite loss \(nan\)"):
            train(small, tmp_path / "run")
        done, newest = checkpoints(tmp_path / "run")[-1]
        assert done == 3
        assert not (tmp_path / "run" / "result.json").exists()
        before = checkpoints(tmp_path / "run")[-2][1]
        assert (newest / "weights.safetensors").read_bytes() == (before / "weights.safetensors").read_bytes()
        with pytest.raises(TrainingError, match="3 optimiser steps in a row"):
            resume(tmp_path / "run")  # two were counted before the checkpoint: the first one more ends it
    assert resume(tmp_path / "run").skipped == 2
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
