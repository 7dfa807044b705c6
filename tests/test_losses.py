"""Losses against loops in plain floats and TorchRL's GRPOLoss; micro-batch accumulation, padding, clipping."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import (
    ADVANTAGE,
    MASK,
    OLD_STEP,
    OLD_TOKEN,
    STEP,
    TOKEN,
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
from torchrl.objectives import LossModule
from torchrl.objectives.llm import GRPOLoss

from dlmrl_kit.core.component import Component
from dlmrl_kit.losses.base import Objective, max_over, mean_over
from dlmrl_kit.losses.length_weighted_reinforce import LengthWeightedReinforce
from dlmrl_kit.losses.linearised_bound import LinearisedBound
from dlmrl_kit.losses.ppo import LengthNormalisedPPO, PerTokenSequencePPO, SequencePPO, StepPPO
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.means import FixedLength, PerSequence, PerStep

LOSSES: list[tuple[Callable[[], Objective], tuple[str, str]]] = [
    (Reinforce, STEP),
    (StepPPO, STEP),
    (lambda: StepPPO(clip_low=0.1, clip_high=0.3), STEP),
    (TokenPPO, TOKEN),
    (lambda: TokenPPO(clip_low=0.4, clip_high=0.1), TOKEN),
    *[(lambda make=make: TokenPPO(normaliser=make()), TOKEN) for make in (PerStep, PerSequence, FixedLength)],
    (SequencePPO, STEP),
    (LengthNormalisedPPO, STEP),
    (PerTokenSequencePPO, STEP),
    (LinearisedBound, STEP),
    (LengthWeightedReinforce, STEP),
]
all_losses = pytest.mark.parametrize(("make", "key"), LOSSES)


def poison(batch: TensorDictBase, value: float) -> TensorDict:
    """The same batch with ``value`` wherever nothing may be read: slots of weight 0, token slots without a token."""
    batch = batch.clone()
    dead = batch[WEIGHT] == 0
    assert dead.any()
    for name in ("advantage", "log_prob", "old_log_prob"):
        batch["selected", name][dead] = value
    for name in ("token_log_prob", "old_token_log_prob"):
        batch["selected", name][dead | torch.zeros_like(dead)] = value
        batch["selected", name][~batch[MASK]] = value
    return batch


# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_equals_a_loop(seed: int) -> None:
    batch = make_batch(seed)
    s = batch["selected"]
    terms = [s["weight"][i].item() * s["advantage"][i].item() * s["log_prob"][i].item() for i in slots(batch)]
    log_probs = [s["log_prob"][i].item() for i in slots(batch)]
    out = Reinforce()(batch)
    check_scalars(out, {"loss_objective": -sum(terms) / 5, "log_prob": sum(log_probs) / len(log_probs)})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.5), (0.05, 0.01), (1.0, 3.0)])
def test_step_ppo_equals_a_loop(seed: int, low: float, high: float) -> None:
    batch = make_batch(seed)
    s = batch["selected"]
    total, pairs, clipped = 0.0, [], []
    for i in slots(batch):
        pairs.append((s["log_prob"][i].item(), s["old_log_prob"][i].item()))
        value, binds = surrogate(*pairs[-1], s["advantage"][i].item(), low, high)
        total += s["weight"][i].item() * value
        clipped.append(binds)
    out = StepPPO(low, high)(batch)
    check_scalars(out, {"loss_objective": -total / 5, **expected_diagnostics(pairs, clipped)})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.05, 0.01), (1.0, 3.0)])
def test_token_ppo_equals_a_loop(seed: int, low: float, high: float) -> None:
    batch = make_batch(seed)
    s = batch["selected"]
    total, tokens, pairs, clipped = 0.0, 0.0, [], []
    for i in slots(batch):
        for c in range(s["token_mask"].shape[-1]):
            if s["token_mask"][(*i, c)]:
                pairs.append((s["token_log_prob"][(*i, c)].item(), s["old_token_log_prob"][(*i, c)].item()))
                value, binds = surrogate(*pairs[-1], s["advantage"][i].item(), low, high)
                total += s["weight"][i].item() * value
                tokens += s["weight"][i].item()
                clipped.append(binds)
    loss = TokenPPO(low, high)
    check_scalars(loss(batch), {"loss_objective": -total / tokens, **expected_diagnostics(pairs, clipped)})
    assert loss.count(batch).item() == pytest.approx(tokens)
    assert loss.units(batch).item() == len(pairs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [PerStep, PerSequence, lambda: FixedLength(7)], ids=["step", "sequence", "length"])
def test_token_ppo_with_a_normaliser_equals_a_loop(seed: int, make: Callable[[], Normaliser]) -> None:
    """Mean over the tokens of a step, then over steps; of a sample, then over samples; a constant length."""
    batch, normaliser = make_batch(seed), make()
    s, (b, k, c) = batch["selected"], batch[MASK].shape
    (sums, sizes), weights = torch.zeros(2, b, k, dtype=torch.float64), s["weight"].tolist()
    for i, j in slots(batch):
        for t in range(c):
            if s["token_mask"][i, j, t]:
                new, old = s["token_log_prob"][i, j, t].item(), s["old_token_log_prob"][i, j, t].item()
                sums[i, j] += surrogate(new, old, s["advantage"][i, j].item(), 0.2, 0.3)[0]
                sizes[i, j] += 1
    steps = [(weights[i][j], sums[i, j].item(), sizes[i, j].item()) for i, j in slots(batch)]
    if isinstance(normaliser, PerStep):
        expected = sum(w * total / n for w, total, n in steps) / sum(w for w, _, _ in steps)
    elif isinstance(normaliser, FixedLength):
        expected = sum(w * total for w, total, _ in steps) / 7 / b
    else:
        rows = [[step for (i, _), step in zip(slots(batch), steps, strict=True) if i == row] for row in range(b)]
        means = [sum(w * x for w, x, _ in row) / sum(w * n for w, _, n in row) for row in rows if row]
        expected = sum(means) / b
    out = TokenPPO(0.2, 0.3, normaliser)(batch)
    assert out["loss_objective"].item() == pytest.approx(-expected, rel=1e-10)


class _Scored:
    """An actor as GRPOLoss wants it: its distribution scores the tokens by a table."""

    in_keys = ["scores"]

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def get_dist(self, tensordict: TensorDictBase, **_: Any) -> _Scored:
        self.scores = tensordict["scores"]
        return self

    def log_prob(self, _: Tensor) -> Tensor:
        return self.scores


def test_token_ppo_equals_the_grpo_loss_of_torchrl() -> None:
    batch = make_batch(7)
    batch[WEIGHT] = torch.ones_like(batch[WEIGHT])
    b, k, c = batch[MASK].shape
    actor = _Scored(batch[MASK].reshape(b, k * c))
    oracle = GRPOLoss(actor, clip_epsilon=(0.2, 0.4), entropy_bonus=False)
    scores = batch[TOKEN].reshape(b, k * c).requires_grad_()
    theirs = oracle(
        TensorDict(
            {
                "scores": scores,
                "tokens": {"full": torch.zeros(b, k * c, dtype=torch.int64)},
                "log_probs": {"full": batch[OLD_TOKEN].reshape(b, k * c)},
                "advantage": batch[ADVANTAGE][..., None].expand(b, k, c).reshape(b, k * c, 1),
            },
            [b],
        )
    ).loss_objective
    (their_grad,) = torch.autograd.grad(theirs.sum(), scores)
    out, grad = run(TokenPPO(0.2, 0.4), batch, TOKEN)
    torch.testing.assert_close(out["loss_objective"], theirs.squeeze(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad.reshape(b, k * c), their_grad, rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------- clipping

CLIP_CASES = [
    # ratio, advantage, loss, gradient in the log-probability, clip binds;  low 0.2, high 0.5
    (2.0, 1.0, -1.5, 0.0, 1.0),
    (2.0, -1.0, 2.0, 2.0, 0.0),
    (0.5, 1.0, -0.5, -0.5, 0.0),
    (0.5, -1.0, 0.8, 0.0, 1.0),
    (1.25, 2.0, -2.5, -2.5, 0.0),
    (1.25, -2.0, 2.5, 2.5, 0.0),
    (0.9, 2.0, -1.8, -1.8, 0.0),
    (0.9, -2.0, 1.8, 1.8, 0.0),
    (1.0, 3.0, -3.0, -3.0, 0.0),
    (1.0, -3.0, 3.0, 3.0, 0.0),
    (2.0, 0.0, 0.0, 0.0, 0.0),
    (0.5, 0.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("make", "key", "old"), [(StepPPO, STEP, OLD_STEP), (TokenPPO, TOKEN, OLD_TOKEN)])
@pytest.mark.parametrize(("ratio", "advantage", "value", "gradient", "binds"), CLIP_CASES)
def test_clip_by_hand(
    make: type, key: Any, old: Any, ratio: float, advantage: float, value: float, gradient: float, binds: float
) -> None:
    batch = make_batch(0, 1, 1, 1)
    batch[WEIGHT][:], batch[ADVANTAGE][:], batch[old][:], batch[key][:] = 1.0, advantage, -3.0, -3.0 + math.log(ratio)
    out, grad = run(make(clip_low=0.2, clip_high=0.5), batch, key)
    assert out["loss_objective"].item() == pytest.approx(value, abs=1e-12)
    assert grad.item() == pytest.approx(gradient, abs=1e-12)
    assert out["clip_fraction"].item() == binds
    assert out["ratio"].item() == pytest.approx(ratio)


@pytest.mark.parametrize(("make", "key", "old"), [(StepPPO, STEP, OLD_STEP), (TokenPPO, TOKEN, OLD_TOKEN)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_ratios_stay_finite_and_large_ones_keep_their_gradient(
    make: type, key: Any, old: Any, dtype: torch.dtype
) -> None:
    batch = make_batch(0, 6, 1, 1, dtype)
    batch[WEIGHT][:], batch[old][:] = 1.0, 0.0
    batch[key] = torch.tensor([1000.0, -1000.0, 1000.0, -1000.0, 15.0, -15.0], dtype=dtype).reshape(batch[key].shape)
    batch[ADVANTAGE] = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 1.0], dtype=dtype).reshape(6, 1)
    out, grad = run(make(), batch, key)
    assert all(value.isfinite() for value in out.values())
    assert grad.isfinite().all()
    assert grad.flatten()[4].item() == pytest.approx(math.exp(15) / 6, rel=1e-5)
    assert grad.flatten()[5].item() == pytest.approx(-math.exp(-15) / 6, rel=1e-5)


# ------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_gradients_are_the_policy_gradient(seed: int) -> None:
    batch = make_batch(seed)
    batch[OLD_TOKEN], batch[OLD_STEP] = batch[TOKEN], batch[STEP]
    _, reinforce = run(Reinforce(), batch, STEP)
    # the policy gradient itself: -w A / B at every step
    torch.testing.assert_close(reinforce, -batch[WEIGHT] * batch[ADVANTAGE] / 5, rtol=1e-14, atol=0)
    out, step = run(StepPPO(), batch, STEP)
    torch.testing.assert_close(step, reinforce, rtol=1e-14, atol=0)
    assert [out[name].item() for name in ("ratio", "ratio_max", "clip_fraction", "approx_kl")] == [1, 1, 0, 0]

    # token by token, the step's log-probability being the sum of its tokens'
    tokens = TokenPPO()
    _, token = run(tokens, batch, TOKEN)
    by_token = (reinforce[..., None] * batch[MASK]) * 5
    torch.testing.assert_close(token * tokens.count(batch), by_token, rtol=1e-13, atol=0)
    assert token.abs().max() > 0


@all_losses
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_micro_batches_accumulate_exactly(make: Callable[[], Objective], key: tuple[str, str], data: Any) -> None:
    b = data.draw(st.integers(1, 7))
    batch = make_batch(data.draw(st.integers(0, 10_000)), b)
    cuts = sorted([*data.draw(st.lists(st.integers(0, b), max_size=4)), 0, b])
    order = torch.tensor(data.draw(st.permutations(range(b))))
    loss = make()

    whole, grad = run(loss, batch, key)
    total, count = torch.zeros((), dtype=torch.float64), 0
    leaf = batch[key].clone().requires_grad_()
    for start, stop in pairwise(cuts):
        rows = order[start:stop]
        micro = batch[rows]
        micro[key] = leaf[rows]
        micro_count = loss.count(micro)
        assert micro_count.shape == ()
        total = total + loss(micro)["loss_objective"] * micro_count
        count += micro_count.item()
    assert count == pytest.approx(loss.count(batch).item(), rel=1e-12)
    total = total / (count or 1)
    (accumulated,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(total, whole["loss_objective"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(accumulated, grad, rtol=1e-12, atol=1e-13)


@all_losses
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_contributes_exactly_nothing(make: Callable[[], Objective], key: tuple[str, str], junk: float) -> None:
    batch = make_batch(1)
    clean, clean_grad = run(make(), batch, key)
    out, grad = run(make(), poison(batch, junk), key)
    for name in clean.keys():  # noqa: SIM118 (a TensorDict iterates over its batch)
        assert torch.equal(out[name], clean[name]), name
    assert torch.equal(grad, clean_grad)
    assert (grad[batch[WEIGHT] == 0] == 0).all()
    assert grad.abs().sum() > 0


@all_losses
def test_nan_in_a_live_slot_is_not_hidden(make: Callable[[], Objective], key: tuple[str, str]) -> None:
    batch = make_batch(1)
    i, j = slots(batch)[0]
    batch[key][i, j] = math.nan
    assert make()(batch)["loss_objective"].isnan()


@all_losses
def test_a_batch_of_padding_is_zero_with_zero_gradient(make: Callable[[], Objective], key: tuple[str, str]) -> None:
    batch = make_batch(1)
    batch[WEIGHT][:] = 0
    out, grad = run(make(), poison(batch, math.nan), key)
    assert all(value.item() == 0 for value in out.values())
    assert (grad == 0).all()


@all_losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_keys_and_detached_diagnostics(
    make: Callable[[], Objective], key: tuple[str, str], dtype: torch.dtype
) -> None:
    loss = make()
    batch = make_batch(2, dtype=dtype)
    batch[key].requires_grad_()
    out = loss(batch.select(*loss.in_keys))  # reads nothing but its in_keys
    assert list(out.keys()) == loss.out_keys
    assert out.batch_size == ()
    assert out["loss_objective"].requires_grad
    for name in loss.out_keys:
        assert out[name].dtype == dtype
        assert out[name].requires_grad == (name == "loss_objective")
    for missing in loss.in_keys:
        with pytest.raises(KeyError, match=missing if isinstance(missing, str) else missing[-1]):
            loss(batch.exclude(missing))


@all_losses
def test_old_log_probs_and_advantages_are_constants(make: Callable[[], Objective], key: tuple[str, str]) -> None:
    batch = make_batch(3)
    leaf = batch[key].clone().requires_grad_()
    batch[key] = leaf
    for new, old in ((STEP, OLD_STEP), (TOKEN, OLD_TOKEN)):
        batch[old] = batch[old] + (batch[new] - batch[new].detach())
    batch[ADVANTAGE] = batch[ADVANTAGE] + batch[key].reshape(5, 4, -1).mean(-1)
    batch["advantage"] = batch["advantage"] + batch[key].reshape(5, -1).mean(-1)
    (grad,) = torch.autograd.grad(make()(batch)["loss_objective"], leaf)
    detached = batch.apply(lambda t: t.detach())
    torch.testing.assert_close(grad, run(make(), detached, key)[1], rtol=0, atol=0)


@all_losses
def test_is_a_component_and_a_loss_module(make: Callable[[], Objective], key: tuple[str, str]) -> None:
    loss = make()
    assert isinstance(loss, Component)
    assert isinstance(loss, LossModule)
    assert not list(loss.parameters())
    assert loss.written_keys() == tuple(loss.out_keys)
    batch = make_batch(4)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(batch)["loss_objective"], loss(batch)["loss_objective"])


@pytest.mark.parametrize(
    "make", [StepPPO, TokenPPO, SequencePPO, LengthNormalisedPPO, PerTokenSequencePPO, LinearisedBound]
)
@pytest.mark.parametrize(
    ("parameter", "value"),
    [("clip_low", -0.1), ("clip_low", 1.5), ("clip_low", math.nan), ("clip_high", -0.1), ("clip_high", math.nan)],
)
def test_parameters_out_of_range(make: type, parameter: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{make.__name__}\.{parameter} must be .*got {value}"):
        make(**{parameter: value})


def test_empty_masks_have_mean_and_maximum_zero() -> None:
    nothing = torch.zeros(3, dtype=torch.bool)
    values = torch.full((3,), math.nan)
    assert mean_over(values, nothing).item() == 0
    assert max_over(values, nothing).item() == 0
    some = torch.tensor([False, True, True])
    values = torch.tensor([math.nan, -3.0, -1.0])
    assert mean_over(values, some).item() == -2
    assert max_over(values, some).item() == -1
