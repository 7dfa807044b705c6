"""Preferences: DPO against a loop, by its formula, and at its edges."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loss_batches import REF_STEP, STEP, WEIGHT, check_scalars, entries, make_batch, run, totals
from tensordict import TensorDict, TensorDictBase

from dlmrl_kit.losses.dpo import DPO

fast = settings(max_examples=40, deadline=None)


def slow_dpo(batch: TensorDictBase, beta: float) -> tuple[float, int, float, float, dict[tuple[int, int], float]]:
    """Loss, groups, accuracy, margin, and the derivative of the loss in each entry's log-probability."""
    new, reference = totals(batch, STEP), totals(batch, REF_STEP)
    group, reward = batch["group"].tolist(), batch["reward"].tolist()
    loss = accuracy = margin = 0.0
    slope = dict.fromkeys(new, 0.0)
    groups = 0
    for g in sorted(set(group)):
        members = [i for i in new if group[i] == g]
        rewards = [reward[i] for i in members]
        if len(set(rewards)) < 2:
            continue
        groups += 1
        pairs = [
            (w, z) for w, z in product(members, members) if reward[w] == max(rewards) and reward[z] == min(rewards)
        ]
        for w, z in pairs:
            m = beta * ((new[w] - reference[w]) - (new[z] - reference[z])).item()
            loss += math.log1p(math.exp(-m)) / len(pairs)
            accuracy += (m > 0) / len(pairs)
            margin += m / len(pairs)
            pull = -beta / (1 + math.exp(m)) / len(pairs)
            slope[w] += pull
            slope[z] -= pull
    n = max(groups, 1)
    gradient = {(i, j): slope[i] * batch[WEIGHT][i, j].item() / n for i, j in entries(batch)}
    return loss / n, groups, accuracy / n, margin / n, gradient


def preference_batch(seed: int, b: int, groups: int, levels: int) -> TensorDict:
    """Interleaved groups of any size, some samples without a selected entry."""
    gen = torch.Generator().manual_seed(seed)
    batch = make_batch(seed, b=b)
    batch["group"] = 10 - 3 * torch.randint(0, groups, (b,), generator=gen)
    batch["reward"] = torch.randint(0, levels, (b,), generator=gen).double() / 4
    batch[WEIGHT][0] = 0
    return batch


@fast
@given(
    st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.1, 1.0, 5.0])
)
def test_dpo_equals_a_loop(seed: int, b: int, groups: int, levels: int, beta: float) -> None:
    batch = preference_batch(seed, b, groups, levels)
    loss, count, accuracy, margin, slope = slow_dpo(batch, beta)
    out, grad = run(DPO(beta), batch, STEP)
    check_scalars(out, {"loss_objective": loss, "preference_accuracy": accuracy, "preference_margin": margin})
    assert DPO(beta).count(batch).item() == DPO(beta).units(batch).item() == count
    expected = torch.zeros_like(grad)
    for (i, j), value in slope.items():
        expected[i, j] = value
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-13)


def test_dpo_of_one_pair_is_the_textbook_formula() -> None:
    batch = make_batch(0, b=2)
    batch["reward"] = torch.tensor([0.0, 1.0], dtype=torch.float64)
    new, reference = totals(batch, STEP), totals(batch, REF_STEP)
    margin = 0.2 * ((new[1] - reference[1]) - (new[0] - reference[0]))
    expected = -torch.nn.functional.logsigmoid(margin)
    assert DPO()(batch)["loss_objective"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_sample_of_middle_reward_has_no_gradient_and_equal_rewards_have_no_pair() -> None:
    batch = make_batch(1, b=5)
    batch[WEIGHT] = torch.ones_like(batch[WEIGHT])
    batch["group"] = torch.tensor([0, 0, 0, 1, 1])
    batch["reward"] = torch.tensor([0.5, 1.0, 0.0, 0.7, 0.7], dtype=torch.float64)
    _, grad = run(DPO(), batch, STEP)
    assert (grad != 0).all(-1).tolist() == [False, True, True, False, False]
    assert (grad[[0, 3, 4]] == 0).all()
    assert (grad[1] < 0).all()
    assert (grad[2] > 0).all()
    assert DPO().count(batch).item() == 1
    alone = batch[3:]
    out, grad = run(DPO(), alone, STEP)
    assert all(value.item() == 0 for value in out.values())
    assert (grad == 0).all()


@fast
@given(st.integers(0, 10_000), st.integers(2, 9), st.lists(st.integers(0, 3), max_size=2), st.randoms())
def test_dpo_accumulates_over_micro_batches_of_whole_groups(seed: int, b: int, cuts: list[int], random: Any) -> None:
    batch, loss = preference_batch(seed, b, 3, 3), DPO(0.7)
    whole, grad = run(loss, batch, STEP)
    order = list(range(b))
    random.shuffle(order)  # within groups and among them
    groups = sorted(set(batch["group"].tolist()))
    bounds = sorted({0, len(groups), *(min(cut, len(groups)) for cut in cuts)})
    total, joined = 0.0, torch.zeros_like(grad)
    for start, stop in pairwise(bounds):
        rows = [i for i in order if batch["group"][i].item() in groups[start:stop]]
        out, piece = run(loss, batch[rows], STEP)
        total += out["loss_objective"].item() * loss.count(batch[rows]).item()
        joined[rows] += piece * loss.count(batch[rows])
    count = max(loss.count(batch).item(), 1)
    assert total / count == pytest.approx(whole["loss_objective"].item(), rel=1e-10, abs=1e-12)
    torch.testing.assert_close(joined / count, grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_padding_reaches_no_preference(junk: float) -> None:
    batch = preference_batch(5, 8, 2, 3)
    dirty = batch.clone()
    for key in (STEP, REF_STEP):
        dirty[key][batch[WEIGHT] == 0] = junk
    dirty["reward"][0] = 99.0  # of the sample that selected nothing
    (clean, clean_grad), (out, grad) = (run(DPO(), td, STEP) for td in (batch, dirty))
    for name in DPO().out_keys:
        assert torch.equal(out[name], clean[name])
    assert torch.equal(grad, clean_grad)
    assert grad.abs().sum() > 0


def test_the_reference_gets_no_gradient() -> None:
    batch = preference_batch(5, 8, 2, 3)
    batch[REF_STEP].requires_grad_()
    batch[STEP].requires_grad_()
    DPO()(batch)["loss_objective"].backward()
    assert batch[REF_STEP].grad is None
    assert batch[STEP].grad.abs().sum() > 0


def test_extreme_margins_stay_finite() -> None:
    batch = make_batch(0, b=2, dtype=torch.float32)
    batch["reward"] = torch.tensor([0.0, 1.0])
    for sign in (1e6, -1e6):
        batch[STEP] = torch.tensor([[-sign] * 4, [sign] * 4])
        out, grad = run(DPO(), batch, STEP)
        assert out["loss_objective"].isfinite()
        assert grad.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_out_of_range(beta: float) -> None:
    with pytest.raises(ValueError, match=rf"DPO\.beta must be positive and finite, got {beta}"):
        DPO(beta)
