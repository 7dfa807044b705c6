"""The update: accumulation changes nothing, ratios start at 1, bad gradients are skipped, old and reference fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tiny_runs import tiny_run
from torch import Tensor

from dlmrl_kit.errors import TrainingError
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb
from dlmrl_kit.likelihoods.step_token_log_prob import StepTokenLogProb
from dlmrl_kit.training.loop import Run
from dlmrl_kit.trajectory import gather_steps

COMBINATIONS: list[list[str]] = [
    [],
    ["loss=Reinforce", "regulariser=none"],
    ["loss=TokenPPO", "regulariser=KLK2+EntropyBonus"],
    ["regulariser=KLExact"],
    ["likelihood=StepLogProb", "selector=EntropyImportance"],
    ["selector=EntropyCoverage", "sampler=ConfidenceThreshold"],
]


def weights(run: Run) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for _, p in run.policy.trainable()])


def one_update(run: Run) -> dict[str, float]:
    trajectory = run.updater.prepare(run.collect(0))
    assert trajectory["selected", "advantage"].abs().max() > 0.01  # else there is nothing to learn from
    return run.updater.update(trajectory, 0)


@pytest.mark.parametrize("uses", COMBINATIONS, ids=" ".join)
def test_micro_batches_change_nothing(uses: list[str], tmp_path: Path) -> None:
    results = []
    for size in (1, 4, 64):
        run = tiny_run(tmp_path, uses=uses, sets=[f"Trainer.micro_batch_size = {size}", "Trainer.minibatches = 2"])
        metrics = one_update(run)
        results.append((weights(run), metrics))
    for found, metrics in results[:-1]:
        # AdamW's first steps are nearly sign(gradient) * rate: a loose bound on weights is a tight one on gradients.
        torch.testing.assert_close(found, results[-1][0], rtol=0, atol=2e-4)
        for name in ("loss", "grad_norm"):
            assert metrics[name] == pytest.approx(results[-1][1][name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("likelihood", ["StepLogProb", "StepTokenLogProb"])
@pytest.mark.parametrize("tempered", [True, False])
def test_the_first_ratio_is_one(likelihood: str, tempered: bool, tmp_path: Path) -> None:
    sets = [f"StepTokenLogProb.sampling_temperature = {tempered}"] if likelihood == "StepTokenLogProb" else []
    run = tiny_run(tmp_path, uses=[f"likelihood={likelihood}"], sets=[*sets, "Trainer.minibatches = 1"])
    trajectory = run.updater.prepare(run.collect(0))
    assert run.updater.check_old(trajectory) < 1e-5
    metrics = run.updater.update(trajectory, 0)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_fraction"] == 0
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)


class AnotherTemperature(StepTokenLogProb):
    def estimate(self, steps: Any, policy: Any, sampler: Any) -> dict[Any, Tensor]:
        found = super().estimate(steps, policy, sampler)
        return {key: value * 1.1 for key, value in found.items()}


class Recomputed(StepLogProb):
    @property
    def recorded(self) -> dict[Any, Any]:
        return {}


def test_log_probs_that_disagree_stop_training(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    run.algorithm.likelihood = AnotherTemperature(sampling_temperature=False)
    trajectory = run.updater.prepare(run.collect(0))
    with pytest.raises(TrainingError, match=r"disagree before the first update.*AnotherTemperature.*LowConfidence"):
        run.updater.check_old(trajectory)


def test_old_log_probs_are_recomputed_where_the_sampler_records_none(tmp_path: Path) -> None:
    from dlmrl_kit import dataflow

    run = tiny_run(tmp_path, uses=["likelihood=StepLogProb"])
    run.algorithm.likelihood = Recomputed()
    run.updater.plan = dataflow.plan(run.algorithm)
    assert run.updater.plan.old == {("selected", "old_log_prob"): None}
    trajectory = run.updater.prepare(run.collect(0))
    expected = gather_steps(trajectory["step", "log_prob"], trajectory["selected", "step"])
    torch.testing.assert_close(trajectory["selected", "old_log_prob"], expected, rtol=0, atol=1e-5)


def test_a_reference_exists_only_where_it_is_read(tmp_path: Path) -> None:
    assert tiny_run(tmp_path, uses=["regulariser=none"]).policy._reference is None
    assert tiny_run(tmp_path, uses=["regulariser=EntropyBonus"]).policy._reference is None
    assert tiny_run(tmp_path).policy._reference is not None


def test_bad_gradients_are_skipped_counted_and_stop_training(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, sets=["Trainer.minibatches = 1", "Trainer.max_skipped = 3"])
    before = weights(run)
    trajectory = run.updater.prepare(run.collect(0))
    poisoned = trajectory.clone()
    poisoned["selected", "advantage"] = torch.full_like(poisoned["selected", "advantage"], torch.nan)
    assert run.updater.update(poisoned, 0)["skipped"] == 1
    assert torch.equal(weights(run), before)
    run.updater.update(trajectory, 0)
    assert not torch.equal(weights(run), before)
    assert run.updater.skipped_in_a_row == 0
    run.updater.update(poisoned, 0)
    run.updater.update(poisoned, 0)
    with pytest.raises(TrainingError, match="3 optimiser steps in a row had a non-finite loss"):
        run.updater.update(poisoned, 0)
    assert bool(torch.isfinite(weights(run)).all())


def test_monte_carlo_restarts_from_finished_states_give_the_reward(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, uses=["advantage=MonteCarlo"])
    seen: list[tuple[Tensor, Tensor]] = []
    from dlmrl_kit.training.services import Services

    original = Services.restart

    def spy(self: Services, tensordict: TensorDict, step: Tensor, n: int) -> Tensor:
        found = original(self, tensordict, step, n)
        seen.append((step, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Services, "restart", spy)
        trajectory = run.collect(0)
    used = trajectory["selected", "weight"] > 0
    step, rewards = seen[0]
    finished = used & (step >= trajectory["step", "valid"].sum(-1)[:, None])
    assert bool(finished.any())
    expected = trajectory["reward"][:, None, None].expand_as(rewards)
    assert torch.equal(rewards[finished], expected[finished])
    assert bool(((rewards >= 0) & (rewards <= 1)).all())


def test_a_rollout_in_pieces_is_the_same_kind_of_rollout(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path).collect(0)
    pieces = tiny_run(tmp_path, sets=["Trainer.rollout_batch_size = 4"]).collect(0)
    assert pieces.shape == whole.shape
    assert torch.equal(pieces["prompt_ids"], whole["prompt_ids"])
    assert set(pieces.keys(True, True)) == set(whole.keys(True, True))


def test_inner_iterations_and_mixed_precision_run(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, sets=["Trainer.inner_iterations = 2", "Trainer.precision = 'bfloat16'"])
    trajectory = run.updater.prepare(run.collect(0))
    run.updater.check_old(trajectory)
    metrics = run.updater.update(trajectory, 0)
    assert metrics["ratio"] != 1
    assert run.updater.scheduler.last_epoch == 4  # 2 iterations of 2 minibatches
