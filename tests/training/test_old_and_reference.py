"""Old and reference log-probabilities: when they cost a forward, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import model_path, new_run, old_difference, perturb, prepared, rollout, sgd, weights
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.gradient import Totals

ADVANTAGE, WEIGHT = ("selected", "advantage"), ("selected", "weight")


def forwards(policy: TransformersPolicy) -> list[bool]:
    """A list that grows by one at each forward pass of the policy: whether it had gradients."""
    seen: list[bool] = []
    features = policy.features

    def counting(*given: Any) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return features(*given)

    policy.features = counting  # type: ignore[method-assign]
    return seen


class Recomputed(StepLogProb):
    """Claims that the sampler records nothing."""

    @property
    def recorded(self) -> dict[Any, Any]:
        return {}


def test_recorded_log_probs_cost_no_forward_pass(tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=["likelihood=StepLogProb", "regulariser=none"])
    trajectory = rollout(run)
    seen = forwards(run.policy)
    prepared(run.update, trajectory)
    assert seen == []
    step = trajectory["selected", "step"]
    assert torch.equal(trajectory["selected", "old_log_prob"], gather_steps(trajectory["step", "log_prob"], step))


def test_log_probs_that_no_sampler_records_are_recomputed(tmp_path: Path) -> None:
    sets = ["Trainer.micro_batch_size = 4"]
    run = new_run(tmp_path, uses=["regulariser=none"], sets=sets, swaps=Swaps(likelihood=Recomputed()))
    assert run.update.plan.old == {("selected", "old_log_prob"): None}
    trajectory = rollout(run)
    seen = forwards(run.policy)
    prepared(run.update, trajectory)
    assert seen == [False, False]  # two micro-batches, without gradients
    recorded = gather_steps(trajectory["step", "log_prob"], trajectory["selected", "step"])
    torch.testing.assert_close(trajectory["selected", "old_log_prob"], recorded, rtol=0, atol=1e-5)
    perturb(run.policy)
    again = prepared(run.update, trajectory.exclude(("selected", "old_log_prob")))
    assert (again["selected", "old_log_prob"] - recorded).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("uses", "in_prepare", "in_update"),
    [
        (["regulariser=none"], [], [True, True]),
        (["regulariser=EntropyBonus"], [], [True, True]),
        (["regulariser=KLK3"], [False, False], [True, True]),
        (["regulariser=KLExact"], [], [False, True, False, True]),
        (["regulariser=KLExact+KLK1"], [False, False], [False, True, False, True]),
    ],
    ids=lambda value: value[0] if value and isinstance(value[0], str) else "",
)
def test_the_reference_runs_only_where_it_is_read(
    uses: list[str], in_prepare: list[bool], in_update: list[bool], tmp_path: Path
) -> None:
    run = new_run(tmp_path, uses=uses, sets=["Trainer.micro_batch_size = 3", "Trainer.minibatches = 1"])
    needed = bool(in_prepare) or False in in_update
    assert run.update.plan.needs_reference == needed
    assert (run.policy.frozen is not None) == needed
    trajectory = rollout(run)
    seen = forwards(run.policy)
    prepared(run.update, trajectory)
    assert seen == in_prepare
    seen.clear()
    metrics = run.update.learn(trajectory, 0)
    assert seen == in_update
    assert metrics.get("kl", 0.0) == pytest.approx(0, abs=1e-7)


def test_the_reference_stays_where_training_started(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    base = load_policy(model_path())
    perturb(run.policy)
    trajectory = prepared(run.update, rollout(run))
    expected = trajectory.copy()
    with torch.no_grad():
        run.algorithm.likelihood(expected, policy=base, sampler=run.algorithm.sampler)
    assert torch.equal(trajectory["selected", "ref_log_prob"], expected["selected", "log_prob"])
    assert (trajectory["selected", "ref_log_prob"] - trajectory["selected", "old_log_prob"]).abs().max() > 1e-2


def test_the_exact_kl_is_to_where_training_started(tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=["regulariser=KLExact"], sets=["Trainer.micro_batch_size = 4"])
    base, sampler = load_policy(model_path()), run.algorithm.sampler
    trajectory, keys = prepared(run.update, rollout(run)), run.update.plan.likelihood.keys
    perturb(run.policy)
    totals = Totals()
    run.update.gradient.accumulate(trajectory, totals)
    scored = [trajectory.copy(), trajectory.copy()]
    with torch.no_grad():
        for found, policy in zip(scored, (run.policy, base), strict=True):
            run.algorithm.likelihood(found, policy=policy, sampler=sampler, keys=keys)
    log_p, log_q = (found["selected", "distribution"].double() for found in scored)
    used = trajectory["selected", "token_mask"][..., None] & (log_p > -torch.inf)
    kl = torch.where(used, log_p.exp() * (log_p - log_q), 0.0).sum() / 6
    assert kl > 0.1
    assert totals.means()["kl"] == pytest.approx(kl.item(), rel=1e-4)


def test_an_adapter_needs_no_second_copy_of_the_reference(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Pretrained.lora_rank = 2", "Trainer.minibatches = 1"])
    assert run.update.plan.needs_reference
    assert run.policy.frozen is None
    assert all("lora_" in name for name, _ in run.policy.trainable())
    trajectory = prepared(run.update, rollout(run))
    assert old_difference(run.update, trajectory) < 1e-5
    assert run.update.learn(trajectory, 0)["kl"] == pytest.approx(0, abs=1e-8)
    perturb(run.policy, scale=0.3)
    trajectory = prepared(run.update, rollout(run, 1))
    for key in ("ref_log_prob", "old_log_prob"):
        found = trajectory.copy()
        policy = load_policy(model_path()) if key == "ref_log_prob" else run.policy
        with torch.no_grad():
            run.algorithm.likelihood(found, policy=policy, sampler=run.algorithm.sampler)
        torch.testing.assert_close(trajectory["selected", key], found["selected", "log_prob"], rtol=0, atol=1e-5)
    assert (trajectory["selected", "ref_log_prob"] - trajectory["selected", "old_log_prob"]).abs().max() > 1e-2


@pytest.mark.parametrize("rank", [0, 2])
def test_micro_batches_without_any_step_count_nothing(rank: int, tmp_path: Path) -> None:
    sets = [f"Pretrained.lora_rank = {rank}", "Trainer.micro_batch_size = 1", "Trainer.minibatches = 1"]
    results = []
    for size in (1, 6):
        run = new_run(tmp_path, sets=[*sets, f"Trainer.micro_batch_size = {size}"])
        update = sgd(run)
        trajectory = rollout(run)
        trajectory[WEIGHT][[0, 3]] = 0
        before = weights(run.policy)
        metrics = update.learn(prepared(update, trajectory), 0)
        assert metrics["skipped"] == 0
        results.append((weights(run.policy), metrics))
        assert (results[-1][0] - before).abs().max() > 1e-3
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5, abs=1e-6)
