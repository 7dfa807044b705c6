"""How an update is cut: token budgets between the segments of a sample, two passes, masks drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import new_run, prepared, rollout, sgd, weights
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.losses.base import Objective
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.loop import Run

SETS = ["Trainer.minibatches = 1", "Trainer.max_grad_norm = 1e9", "Likelihood.sampling_temperature = False"]
DRAWS = ["selector=WholeSequence", "likelihood=MeanField", "regulariser=KLK3", "advantage=GroupMean"]
SEGMENTS = ["selector=EqualSegments", "likelihood=StepMerge", "regulariser=KLK3", "advantage=GroupMean"]
MASKED_PROMPTS = ["WholeSequence.draws = 3", "MeanField.prompt_mask_share = 0.5"]


class Square(Objective):
    """(sum over segments of weight * log-probability)^2 * advantage: couples all segments of a sample."""

    def __init__(self) -> None:
        super().__init__([("selected", "log_prob"), ("selected", "weight"), ("selected", "advantage")])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        selected = tensordict["selected"]
        whole = (selected["weight"] * selected["log_prob"]).sum(-1)
        return (whole.square() * selected["advantage"].sum(-1)).sum(), {}


def moved(run: Run) -> tuple[Tensor, dict[str, float], int]:
    """Weights after one SGD step, metrics, and the most states that went through the policy at once."""
    largest = 0
    original = TransformersPolicy.features

    def counting(self: TransformersPolicy, input_ids: Tensor, *given: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, input_ids.numel()) if torch.is_grad_enabled() else largest
        return original(self, input_ids, *given)

    trajectory = rollout(run)
    update = sgd(run, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersPolicy, "features", counting)
        metrics = update.learn(prepared(update, trajectory), 0)
    return weights(run.policy), metrics, largest


@pytest.mark.parametrize("loss", [None, Square()])
@pytest.mark.parametrize(("uses", "sets"), [(DRAWS, MASKED_PROMPTS), (SEGMENTS, ["EqualSegments.n = 3"])])
def test_a_token_budget_changes_nothing_but_memory(
    uses: list[str], sets: list[str], loss: Objective | None, tmp_path: Path
) -> None:
    def fresh(budget: int | None = None) -> Run:
        swaps = Swaps() if loss is None else Swaps(loss=loss)
        budgeted = [*SETS, *sets, f"Trainer.micro_batch_tokens = {budget}"]
        run = new_run(tmp_path, "egspo", uses=uses, sets=budgeted, swaps=swaps)
        run.policy.double()  # the square loss makes steps of 50: in single precision they differ by more than 1e-5
        return run

    start = weights(fresh().policy)
    expected, metrics, all_at_once = moved(fresh())
    assert (expected - start).abs().max() > 1e-5
    batch = rollout(fresh())
    length = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
    assert all_at_once > 5 * length
    for budget in (1, 2 * length, 5 * length):
        found, same, largest = moved(fresh(budget))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        assert largest <= max(budget, length)
        for name, value in metrics.items():
            assert same[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_masks_are_drawn_anew_in_each_pass_and_the_ratio_starts_at_one(tmp_path: Path) -> None:
    sets = [*SETS, *MASKED_PROMPTS, "MeanField.redraw = True", "Trainer.inner_iterations = 3"]
    run = new_run(tmp_path, "egspo", uses=DRAWS, sets=sets)
    update = sgd(run, 1e-9)  # hardly any step: the ratio stays at 1 in every pass
    trajectory = prepared(update, rollout(run))
    passes = list(update.minibatches(trajectory, 0))
    assert len(passes) == 3
    assert [int(part["iteration"].max()) for part in passes] == [0, 1, 2]
    by_sample = [part[part["seed"].argsort()]["selected", "old_log_prob"] for part in passes]
    assert (by_sample[0] - by_sample[1]).abs().max() > 1e-4
    assert (by_sample[1] - by_sample[2]).abs().max() > 1e-4
    metrics = update.learn(trajectory, 0)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-4)
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-3)


def test_without_redraw_every_pass_sees_the_same_masks(tmp_path: Path) -> None:
    sets = [*SETS, *MASKED_PROMPTS, "Trainer.inner_iterations = 2"]
    run = new_run(tmp_path, "egspo", uses=DRAWS, sets=sets)
    first, second = run.update.minibatches(prepared(run.update, rollout(run)), 0)
    old = [part[part["seed"].argsort()]["selected", "old_log_prob"] for part in (first, second)]
    torch.testing.assert_close(*old, rtol=0, atol=0)
