"""Losses of whole sequences, of single draws, and of preferences, against loops in float64; what they reduce to."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import (
    ADVANTAGE,
    LENGTH,
    OLD_STEP,
    REF_STEP,
    STEP,
    WEIGHT,
    check_scalars,
    expected_diagnostics,
    make_batch,
    run,
    slots,
    surrogate,
)
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from training_helpers import new_run, sgd, weights

from dlmrl_kit.advantages.group_softmax import GroupSoftmax
from dlmrl_kit.losses.dpo import DPO
from dlmrl_kit.losses.length_weighted_reinforce import LengthWeightedReinforce
from dlmrl_kit.losses.linearised_bound import LinearisedBound
from dlmrl_kit.losses.ppo import LengthNormalisedPPO, PerTokenSequencePPO, SequencePPO, StepPPO
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.testing.claims import audited

fast = settings(max_examples=40, deadline=None)


def totals(batch: TensorDictBase, key: tuple[str, str]) -> dict[int, Tensor]:
    """Weighted sum over the used slots of each sample that has one."""
    found: dict[int, Tensor] = {}
    for i, j in slots(batch):
        found[i] = found.get(i, torch.zeros((), dtype=torch.float64)) + batch[WEIGHT][i, j] * batch[key][i, j]
    return found


def with_equal_advantages(batch: TensorDict) -> TensorDict:
    """The advantage of a sample at each of its slots."""
    batch[ADVANTAGE] = batch["advantage"][:, None].expand_as(batch[WEIGHT]).clone()
    return batch


# ------------------------------------------------------------------------------------------- against loops


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.5), (0.05, 0.01), (1.0, 3.0)])
@pytest.mark.parametrize("make", [SequencePPO, LengthNormalisedPPO, PerTokenSequencePPO])
def test_sequence_losses_equal_a_loop(make: Any, low: float, high: float, seed: int) -> None:
    batch = make_batch(seed, b=7)
    batch[WEIGHT][2] = 0  # a sample that selected nothing
    new, old, length = totals(batch, STEP), totals(batch, OLD_STEP), batch[LENGTH].tolist()
    assert len(new) == 6
    total, pairs, clipped = 0.0, [], []
    for i in new:
        inside = length[i] if make is LengthNormalisedPPO else 1
        outside = length[i] if make is PerTokenSequencePPO else 1
        pairs.append((new[i].item() / inside, old[i].item() / inside))
        value, binds = surrogate(*pairs[-1], batch["advantage"][i].item(), low, high)
        total += value / outside
        clipped.append(binds)
    loss = make(low, high)
    check_scalars(loss(batch), {"loss_objective": -total / 7, **expected_diagnostics(pairs, clipped)})
    assert (loss.count(batch).item(), loss.units(batch).item()) == (7, 6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [SequencePPO, LengthNormalisedPPO, PerTokenSequencePPO])
def test_gradients_of_sequence_losses_equal_a_loop(make: Any, seed: int) -> None:
    batch = make_batch(seed, b=7)
    _, grad = run(make(0.2, 0.3), batch, STEP)
    new, old, length = totals(batch, STEP), totals(batch, OLD_STEP), batch[LENGTH].tolist()
    expected = torch.zeros_like(grad)
    for i, j in slots(batch):
        inside = length[i] if make is LengthNormalisedPPO else 1
        outside = 1 if make is SequencePPO else length[i]  # of the ratio's exponent, or of the surrogate
        difference, advantage = (new[i] - old[i]).item() / inside, batch["advantage"][i].item()
        binds = surrogate(difference, 0.0, advantage, 0.2, 0.3)[1]
        slope = 0.0 if binds else math.exp(difference) * advantage
        expected[i, j] = -batch[WEIGHT][i, j] * slope / outside / 7
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-13)
    assert grad.abs().max() > 0


def bound(difference: float, advantage: float, low: float, high: float, dual: float) -> tuple[float, float, bool]:
    """BGPO's term of one draw, its derivative in the log-ratio per token, and whether a clip binds."""
    ratio = 1 + difference if advantage >= 0 else math.exp(difference)
    slope = advantage if advantage >= 0 else ratio * advantage
    if advantage >= 0 and ratio > 1 + high:
        return (1 + high) * advantage, 0.0, advantage > 0
    if advantage < 0 and ratio < 1 - low:
        return (1 - low) * advantage, 0.0, True
    if advantage < 0 and ratio > dual:
        return dual * advantage, 0.0, True
    return ratio * advantage, slope, False


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, 3.0), (0.05, 0.01, 1.1), (1.0, 3.0, 20.0)])
def test_the_linearised_bound_equals_a_loop(seed: int, low: float, high: float, dual: float) -> None:
    batch = make_batch(seed, b=6)
    batch[STEP] = batch[OLD_STEP] + 6 * (batch[STEP] - batch[OLD_STEP])  # all clips bind somewhere, d <= -1 too
    out, grad = run(LinearisedBound(low, high, dual), batch, STEP)
    total, differences, ratios, clipped = 0.0, [], [], []
    expected = torch.zeros_like(grad)
    for i, j in slots(batch):
        length, advantage = batch[LENGTH][i].item(), batch[ADVANTAGE][i, j].item()
        differences.append((batch[STEP][i, j] - batch[OLD_STEP][i, j]).item() / length)
        value, slope, binds = bound(differences[-1], advantage, low, high, dual)
        ratios.append(1 + differences[-1] if advantage >= 0 else math.exp(differences[-1]))
        total += batch[WEIGHT][i, j].item() * value
        expected[i, j] = -batch[WEIGHT][i, j] * slope / length / 6
        clipped.append(binds)
    n = len(ratios)
    expected_scalars = {
        "loss_objective": -total / 6,
        "ratio": sum(ratios) / n,
        "ratio_max": max(ratios),
        "clip_fraction": sum(clipped) / n,
        "approx_kl": sum(math.exp(d) - 1 - d for d in differences) / n,
    }
    check_scalars(out, expected_scalars)
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-13)
    assert min(differences) <= -1 or seed != 0


@pytest.mark.parametrize("seed", range(3))
def test_length_weighted_reinforce_equals_spgs_formula(seed: int) -> None:
    """-sum_i A_i * (log-probability per token)_i * length_i / sum_i length_i."""
    batch = with_equal_advantages(make_batch(seed, b=6))
    length = batch[LENGTH].tolist()
    per_token = {i: total.item() / length[i] for i, total in totals(batch, STEP).items()}
    terms = [-batch["advantage"][i].item() * value * length[i] for i, value in per_token.items()]
    loss = LengthWeightedReinforce()
    tokens = sum(length[i] for i in per_token)
    assert loss(batch)["loss_objective"].item() == pytest.approx(sum(terms) / tokens, rel=1e-10)
    assert loss.count(batch).item() == tokens


# ------------------------------------------------------------------------------------------- reductions


@pytest.mark.parametrize("seed", range(3))
def test_ratio_free_losses_equal_their_on_policy_counterparts(seed: int) -> None:
    """Before the first update every clipped loss has Reinforce's gradient, up to the length it divides by."""
    batch = with_equal_advantages(make_batch(seed, b=6))
    batch[OLD_STEP] = batch[STEP].clone()
    length = batch[LENGTH][:, None].double()
    _, reinforce = run(Reinforce(), batch, STEP)
    assert reinforce.abs().max() > 0.01
    exact = {"rtol": 1e-13, "atol": 1e-16}
    for make in (StepPPO, SequencePPO):
        torch.testing.assert_close(run(make(), batch, STEP)[1], reinforce, **exact)
    for other in (LengthNormalisedPPO, PerTokenSequencePPO, LinearisedBound):
        torch.testing.assert_close(run(other(), batch, STEP)[1] * length, reinforce, **exact)
    free = LengthWeightedReinforce()
    torch.testing.assert_close(run(free, batch, STEP)[1] * free.count(batch) / 6, reinforce, **exact)
    out, _ = run(free, batch, STEP)
    assert (out["loss_objective"] * free.count(batch) / 6).item() == pytest.approx(
        Reinforce()(batch)["loss_objective"].item(), rel=1e-12
    )


@pytest.mark.parametrize("make", [SequencePPO, LengthNormalisedPPO, PerTokenSequencePPO])
def test_a_single_slot_of_length_one_is_a_step(make: Any) -> None:
    batch = with_equal_advantages(make_batch(4, b=8, k=1))
    batch[LENGTH] = torch.ones_like(batch[LENGTH])
    batch[WEIGHT] = (batch[WEIGHT] != 0).double()
    (expected, expected_grad), (out, grad) = (run(loss(0.2, 0.2), batch, STEP) for loss in (StepPPO, make))
    check_scalars(out, {name: value.item() for name, value in expected.items()})
    torch.testing.assert_close(grad, expected_grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_reinforce_with_group_softmax_is_wd1(seed: int, temperature: float) -> None:
    """-sum w+ log pi + sum w- log pi over the samples of each prompt, averaged over prompts."""
    gen = torch.Generator().manual_seed(seed)
    batch = make_batch(seed, b=8)
    batch["group"] = torch.tensor([3, 1, 3, 1, 3, 1, 3, 1])
    batch["reward"] = torch.rand(8, generator=gen, dtype=torch.float64)
    advantage = GroupSoftmax(temperature)
    advantage.ask_for([ADVANTAGE])
    out, grad = run(Reinforce(), advantage(batch.exclude("advantage", ADVANTAGE)), STEP)
    expected = batch.clone()
    leaf = batch[STEP].clone().requires_grad_()
    expected[STEP] = leaf
    log_prob, loss = totals(expected, STEP), torch.zeros((), dtype=torch.float64)
    for group in (1, 3):
        members = [i for i in range(8) if batch["group"][i] == group]
        centred = batch["reward"][members] - batch["reward"][members].mean()
        up, down = (sign * centred / temperature for sign in (1, -1))
        up, down = up.exp() / up.exp().sum(), down.exp() / down.exp().sum()
        for i, plus, minus in zip(members, up, down, strict=True):
            loss = loss + (minus - plus) * log_prob.get(i, torch.zeros(()))
    (expected_grad,) = torch.autograd.grad(loss / 2, leaf)
    assert out["loss_objective"].item() == pytest.approx(loss.item() / 2, rel=1e-10)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-14)


def test_sequence_ppo_is_audited_as_unbiased() -> None:
    report = audited("loss", SequencePPO())
    assert report.exact
    assert report.relative_bias < 1e-8


# ------------------------------------------------------------------------------------------- the bound


@fast
@given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=5),
    st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3),
    st.integers(1, 6),
)
def test_the_bound_is_below_the_sequence_objective(differences: list[float], advantage: float, length: int) -> None:
    """Free of clips: mean over draws of A g <= A exp(mean over draws of the log-ratio per token)."""
    draws = len(differences)
    selected = {
        "log_prob": length * torch.tensor([differences], dtype=torch.float64),
        "old_log_prob": torch.zeros(1, draws, dtype=torch.float64),
        "advantage": torch.full((1, draws), advantage, dtype=torch.float64),
        "weight": torch.full((1, draws), 1 / draws, dtype=torch.float64),
    }
    keys = {"advantage": torch.tensor([advantage], dtype=torch.float64), "sequence": {"length": torch.tensor([length])}}
    batch = TensorDict({"selected": selected, **keys}, [1])
    lower = -LinearisedBound(1.0, 1e6, 1e6)(batch)["loss_objective"].item()
    target = -LengthNormalisedPPO(1.0, 1e6)(batch)["loss_objective"].item()
    assert lower <= target + 1e-9 * max(1, abs(target))
    if len(set(differences)) == 1 and advantage < 0:
        assert lower == pytest.approx(target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_is_finite_for_any_log_ratio(dtype: torch.dtype) -> None:
    """Where 1 + d is 0 or negative as well: the published log(1 + d) is NaN there."""
    differences = [-1.0, -1.5, -50.0, -1e4, 1e4, 0.0]
    batch = make_batch(0, b=12, k=1, dtype=dtype)
    batch[WEIGHT][:], batch[OLD_STEP][:], batch[LENGTH][:] = 1.0, 0.0, 1
    batch[STEP] = torch.tensor(differences * 2, dtype=dtype)[:, None]
    batch[ADVANTAGE] = torch.tensor([1.0] * 6 + [-1.0] * 6, dtype=dtype)[:, None]
    out, grad = run(LinearisedBound(), batch, STEP)
    assert all(value.isfinite() for value in out.values())
    assert (grad[:4] == -1 / 12).all(), "a good draw that became unlikely is pulled back, however far"
    assert grad[4] == 0
    assert (grad[6:11] == 0).all(), "clipped"
    assert grad[11].item() == pytest.approx(1 / 12)


@pytest.mark.parametrize("value", [1.0, 0.5, math.inf, math.nan])
def test_dual_clip_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=rf"LinearisedBound\.dual_clip must be above 1 and finite, got {value}"):
        LinearisedBound(dual_clip=value)


# ------------------------------------------------------------------------------------------- DPO


def slow_dpo(batch: TensorDictBase, beta: float) -> tuple[float, int, float, float, dict[tuple[int, int], float]]:
    """Loss, groups, accuracy, margin, and the derivative of the loss in each slot's log-probability."""
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
    gradient = {(i, j): slope[i] * batch[WEIGHT][i, j].item() / n for i, j in slots(batch)}
    return loss / n, groups, accuracy / n, margin / n, gradient


def preference_batch(seed: int, b: int, groups: int, levels: int) -> TensorDict:
    """Interleaved groups of any size, some samples without a slot."""
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


FLAGS: list[tuple[Callable[[], Any], bool, bool]] = [
    (SequencePPO, False, False),
    (LengthNormalisedPPO, False, False),
    (PerTokenSequencePPO, False, False),
    (LinearisedBound, True, False),
    (LengthWeightedReinforce, True, False),
    (DPO, False, True),
]


@pytest.mark.parametrize(("make", "slotwise", "needs_groups"), FLAGS)
def test_what_the_update_may_cut(make: Any, slotwise: bool, needs_groups: bool) -> None:
    loss = make()
    assert (loss.slotwise, loss.needs_groups) == (slotwise, needs_groups)


@pytest.mark.parametrize(
    "uses",
    [
        ["loss=SequencePPO", "regulariser=SequenceKLK2"],
        ["loss=LengthWeightedReinforce", "regulariser=SequenceKLK1"],
        ["loss=DPO", "regulariser=none"],
    ],
    ids=["two passes", "slot by slot", "whole groups in two passes"],
)
def test_a_draw_at_a_time_gives_the_same_update(uses: list[str], tmp_path: Path) -> None:
    """The smallest token budget, one state per pass, changes neither the weights nor the metrics of an update."""
    sets = ["Trainer.minibatches = 1", "Trainer.max_grad_norm = 1e9", "WholeSequence.draws = 3"]
    sets += ["MeanField.prompt_mask_share = 0.5"]
    uses = ["selector=WholeSequence", "likelihood=MeanField", "advantage=GroupMean", *uses]

    def updated(budget: int | None) -> tuple[Tensor, Tensor, dict[str, float]]:
        trainer = new_run(tmp_path, "egspo", uses=uses, sets=sets)
        start, updater = weights(trainer.policy), sgd(trainer, 0.1)
        updater.trainer.micro_batch_tokens = budget
        metrics = updater.update(updater.prepare(trainer.collect(0).kept), 0)
        return start, weights(trainer.policy), metrics

    start, expected, metrics = updated(None)
    _, found, same = updated(1)
    assert (expected - start).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert same == pytest.approx(metrics, rel=1e-4, abs=1e-6)
