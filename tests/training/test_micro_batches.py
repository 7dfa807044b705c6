"""Micro-batches change nothing; metrics of terms and their means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import new_run, perturb, prepared, rollout, sgd, weights
from torch import Tensor

from dlmrl_kit.training.gradient import Totals

ADVANTAGE, WEIGHT = ("selected", "advantage"), ("selected", "weight")
TERMS: dict[str, tuple[str, list[str]]] = {
    "StepPPO+KLK3": ("egspo_sa", []),
    "Reinforce": ("reinforce_exact", []),
    "Reinforce, uneven": ("ada_egspo", ["sampler=ConfidenceThreshold", "loss=Reinforce", "regulariser=KLK1"]),
    "StepPPO, uneven": ("ada_egspo", ["sampler=ConfidenceThreshold", "regulariser=KLK2+KLK3"]),
    "TokenPPO, uneven": ("ada_egspo", ["sampler=ConfidenceThreshold", "loss=TokenPPO", "regulariser=EntropyBonus"]),
    "KLExact": ("egspo_sa", ["regulariser=KLExact+EntropyBonus"]),
    "EntropyBonus": ("egspo", ["regulariser=EntropyBonus", "likelihood=StepLogProb"]),
    "EntropyImportance": ("egspo", ["selector=EntropyImportance"]),
}


@pytest.mark.parametrize("label", TERMS)
def test_micro_batches_change_nothing(label: str, tmp_path: Path) -> None:
    name, uses = TERMS[label]
    uneven = ["ConfidenceThreshold.threshold = 0.35"] if "uneven" in label else []
    sets = [*uneven, "Trainer.minibatches = 1", "Trainer.inner_iterations = 2", "Trainer.max_grad_norm = 1000.0"]
    results: list[tuple[Tensor, dict[str, float]]] = []
    for size in (1, 3, 6):
        run = new_run(tmp_path, name, uses=uses, sets=[*sets, f"Trainer.micro_batch_size = {size}"])
        update, before = sgd(run, 0.003), weights(run.policy)
        trajectory = prepared(update, rollout(run))
        metrics = update.learn(trajectory, 0)  # the ratios of the second iteration are no longer 1
        results.append((weights(run.policy), metrics))
        assert (results[-1][0] - before).abs().max() > 1e-3
        assert metrics.get("ratio_max", 2) > 1.01
        assert metrics.keys() >= {"loss", "grad_norm", "loss_objective", "learning_rate", "skipped"}
    if uneven:
        used = (trajectory[WEIGHT] > 0).sum(-1)
        assert used.min() < used.max(), "rows must differ in their number of steps"
    for found, metrics in results[:-1]:
        torch.testing.assert_close(found, results[-1][0], rtol=0, atol=1e-5)
        assert metrics == pytest.approx(results[-1][1], rel=1e-5, abs=1e-6)


def test_one_step_completions_are_not_copied_with_every_minibatch(tmp_path: Path) -> None:
    """They have a number for every step and position; a loss that reads them gets them."""
    run = new_run(tmp_path)
    trajectory = prepared(run.update, rollout(run))
    greedy = ("step", "greedy_ids")
    assert greedy in trajectory.keys(True)
    for reads in (False, True):
        if reads:
            run.algorithm.loss.in_keys = [*run.algorithm.loss.in_keys, greedy]
        found = list(run.update.minibatches(trajectory, 0))
        assert found
        assert all((greedy in minibatch.keys(True)) == reads for minibatch in found)
    assert greedy in trajectory.keys(True)


def test_two_terms_with_a_metric_of_the_same_name_keep_their_own(tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=["regulariser=KLK1+KLK2+KLK3"])
    trajectory = prepared(run.update, rollout(run))
    perturb(run.policy)
    totals = Totals()
    loss = run.update.gradient.accumulate(trajectory, totals)
    means, scored = totals.means(), trajectory.copy()
    with torch.no_grad():
        run.algorithm.likelihood(scored, policy=run.policy, sampler=run.algorithm.sampler)
    for label, regulariser in zip(("kl", "kl/2", "kl/3"), run.algorithm.regularisers, strict=True):
        assert means[label] == pytest.approx(regulariser(scored)["kl"].item(), rel=1e-5)
    parts = ("loss_objective", "loss_kl", "loss_kl/2", "loss_kl/3")
    assert loss == pytest.approx(sum(means[part] for part in parts), rel=1e-5)
    assert len({round(means[label], 6) for label in ("kl", "kl/2", "kl/3")}) == 3


def test_maxima_are_maxima_and_means_are_weighted() -> None:
    one, other = Totals(), Totals()
    one.add("ratio_max", 2.0, 0.5)
    one.add("ratio_max", 3.0, 0.5)
    one.add("ratio", 1.0, 0.25)
    one.add("ratio", 2.0, 0.75)
    one.add("empty", 5.0, 0.0)
    assert one.means() == {"ratio_max": 3.0, "ratio": 1.75}
    other.add("ratio_max", 2.5)
    other.add("ratio", 3.25, 1.0)
    one.merge(other)
    assert one.means() == {"ratio_max": 3.0, "ratio": 2.5}
