"""How an update is cut: whole groups, token budgets between the slots of a sample, two passes, masks drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from training_helpers import new_run, rollout, sgd, weights

from dlmrl_kit.core.trajectory import micro_batches, shuffled, slot_pieces
from dlmrl_kit.losses.base import Objective
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.training.loop import Run

SETS = ["Trainer.minibatches = 1", "Trainer.max_grad_norm = 1e9", "Likelihood.sampling_temperature = False"]
DRAWS = ["selector=WholeSequence", "likelihood=MeanField", "regulariser=KLK3", "advantage=GroupMean"]
SEGMENTS = ["selector=EqualSegments", "likelihood=StepMerge", "regulariser=KLK3", "advantage=GroupMean"]
MASKED_PROMPTS = ["WholeSequence.draws = 3", "MeanField.prompt_mask_share = 0.5"]


class Square(Objective):
    """(sum over slots of weight * log-probability)^2 * advantage: couples all slots of a sample."""

    def __init__(self) -> None:
        super().__init__([("selected", "log_prob"), ("selected", "weight"), ("selected", "advantage")])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        selected = tensordict["selected"]
        whole = (selected["weight"] * selected["log_prob"]).sum(-1)
        return (whole.square() * selected["advantage"].sum(-1)).sum(), {}


def moved(run: Run, budget: int | None, loss: Objective | None = None) -> tuple[Tensor, dict[str, float], int]:
    """Weights after one SGD step, metrics, and the most states that went through the policy at once."""
    largest = 0
    original = Policy.features

    def counting(self: Policy, input_ids: Tensor, *given: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, input_ids.numel()) if torch.is_grad_enabled() else largest
        return original(self, input_ids, *given)

    if loss is not None:
        run.algorithm.loss = loss
    trajectory = rollout(run)
    updater = sgd(run, 0.1)
    updater.trainer.micro_batch_tokens = budget
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Policy, "features", counting)
        metrics = updater.update(updater.prepare(trajectory), 0)
    return weights(run.policy), metrics, largest


@pytest.mark.parametrize("loss", [None, Square()])
@pytest.mark.parametrize(("uses", "sets"), [(DRAWS, MASKED_PROMPTS), (SEGMENTS, ["EqualSegments.n = 3"])])
def test_a_token_budget_changes_nothing_but_memory(
    uses: list[str], sets: list[str], loss: Objective | None, tmp_path: Path
) -> None:
    def fresh() -> Run:
        run = new_run(tmp_path, "egspo", uses=uses, sets=[*SETS, *sets])
        run.policy.double()  # the square loss makes steps of 50: in single precision they differ by more than 1e-5
        return run

    start = weights(fresh().policy)
    expected, metrics, all_at_once = moved(fresh(), None, loss)
    assert (expected - start).abs().max() > 1e-5
    batch = rollout(fresh())
    length = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
    assert all_at_once > 5 * length
    for budget in (1, 2 * length, 5 * length):
        found, same, largest = moved(fresh(), budget, loss)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        assert largest <= max(budget, length)
        for name, value in metrics.items():
            assert same[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_masks_are_drawn_anew_in_each_pass_and_the_ratio_starts_at_one(tmp_path: Path) -> None:
    sets = [*SETS, *MASKED_PROMPTS, "MeanField.redraw = True", "Trainer.inner_iterations = 3"]
    run = new_run(tmp_path, "egspo", uses=DRAWS, sets=sets)
    updater = sgd(run, 1e-9)  # hardly any step: the ratio stays at 1 in every pass
    trajectory = updater.prepare(rollout(run))
    passes = list(updater.minibatches(trajectory, 0))
    assert len(passes) == 3
    assert [int(part["iteration"].max()) for part in passes] == [0, 1, 2]
    by_sample = [part[part["seed"].argsort()]["selected", "old_log_prob"] for part in passes]
    assert (by_sample[0] - by_sample[1]).abs().max() > 1e-4
    assert (by_sample[1] - by_sample[2]).abs().max() > 1e-4
    metrics = updater.update(trajectory, 0)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-4)
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-3)


def test_without_redraw_every_pass_sees_the_same_masks(tmp_path: Path) -> None:
    sets = [*SETS, *MASKED_PROMPTS, "Trainer.inner_iterations = 2"]
    run = new_run(tmp_path, "egspo", uses=DRAWS, sets=sets)
    first, second = run.updater.minibatches(run.updater.prepare(rollout(run)), 0)
    old = [part[part["seed"].argsort()]["selected", "old_log_prob"] for part in (first, second)]
    torch.testing.assert_close(*old, rtol=0, atol=0)


def batch(group: list[int]) -> TensorDict:
    size = len(group)
    mask = torch.ones(size, 2, dtype=torch.bool)
    return TensorDict({"group": torch.tensor(group), "row": torch.arange(size), "prompt_mask": mask}, [size])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 6), st.booleans())
def test_minibatches_are_a_partition(group: list[int], parts: int, whole: bool) -> None:
    cut = shuffled(batch(group), parts, torch.Generator().manual_seed(0), whole)
    assert len(cut) == parts
    assert sorted(torch.cat(cut).tolist()) == list(range(len(group)))
    if whole:
        groups = [{group[row] for row in part.tolist()} for part in cut]
        assert sum(len(found) for found in groups) == len(set(group))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 8), st.booleans())
def test_micro_batches_keep_to_their_size_and_groups(group: list[int], size: int, whole: bool) -> None:
    group = sorted(group)
    cut = [part for _, part in micro_batches(batch(group), size, whole)]
    assert torch.cat([part["row"] for part in cut]).tolist() == list(range(len(group)))
    for part in cut:
        groups = set(part["group"].tolist())
        assert len(part) <= size or (whole and len(groups) == 1)
        if whole:
            assert all(group.count(g) == part["group"].tolist().count(g) for g in groups)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(1, 5))
def test_pieces_hold_every_used_slot_once(used: list[list[bool]], slots: int) -> None:
    weight = torch.tensor(used) * torch.arange(1.0, 4.0)
    micro = TensorDict({"selected": TensorDict({"weight": weight}, [len(used)])}, [len(used)])
    total = torch.zeros_like(weight)
    for rows, piece in slot_pieces(micro, slots):
        assert 1 <= int((piece["selected", "weight"] != 0).sum()) <= slots
        total.index_add_(0, rows, piece["selected", "weight"])
    assert torch.equal(total, weight)
