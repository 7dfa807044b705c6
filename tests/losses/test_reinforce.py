"""REINFORCE against a loop, and what it reduces to."""

from __future__ import annotations

import pytest
import torch
from support.loss_batches import (
    ADVANTAGE,
    LENGTH,
    OLD_STEP,
    STEP,
    check_scalars,
    entries,
    make_batch,
    run,
    totals,
    with_equal_advantages,
)

from dlmrl_kit.advantages.group_softmax import GroupSoftmax
from dlmrl_kit.losses.length_weighted_reinforce import LengthWeightedReinforce
from dlmrl_kit.losses.linearised_bound import LinearisedBound
from dlmrl_kit.losses.ppo import LengthNormalisedPPO, PerTokenSequencePPO, SequencePPO, StepPPO
from dlmrl_kit.losses.reinforce import Reinforce


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_equals_a_loop(seed: int) -> None:
    batch = make_batch(seed)
    s = batch["selected"]
    terms = [s["weight"][i].item() * s["advantage"][i].item() * s["log_prob"][i].item() for i in entries(batch)]
    log_probs = [s["log_prob"][i].item() for i in entries(batch)]
    out = Reinforce()(batch)
    check_scalars(out, {"loss_objective": -sum(terms) / 5, "log_prob": sum(log_probs) / len(log_probs)})


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_reinforce_with_group_softmax_is_wd1(seed: int, temperature: float) -> None:
    """-sum w+ log pi + sum w- log pi over the samples of each prompt, averaged over prompts."""
    gen = torch.Generator().manual_seed(seed)
    batch = make_batch(seed, b=8)
    batch["group"] = torch.tensor([3, 1, 3, 1, 3, 1, 3, 1])
    batch["reward"] = torch.rand(8, generator=gen, dtype=torch.float64)
    advantage = GroupSoftmax(temperature)
    out, grad = run(Reinforce(), advantage(batch.exclude("advantage", ADVANTAGE), keys=[ADVANTAGE]), STEP)
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
