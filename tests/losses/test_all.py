"""Every loss: micro-batches, padding, NaN, dtypes, constants, parameters."""

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
from support.loss_batches import ADVANTAGE, MASK, OLD_STEP, OLD_TOKEN, STEP, TOKEN, WEIGHT, entries, make_batch, run
from tensordict import TensorDict, TensorDictBase
from torchrl.objectives import LossModule

from dlmrl_kit.core.component import Component
from dlmrl_kit.losses.base import Objective, max_over, mean_over
from dlmrl_kit.losses.dpo import DPO
from dlmrl_kit.losses.length_weighted_reinforce import LengthWeightedReinforce
from dlmrl_kit.losses.linearised_bound import LinearisedBound
from dlmrl_kit.losses.ppo import LengthNormalisedPPO, PerTokenSequencePPO, SequencePPO, StepPPO
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.losses.relative_score import GuidedSelfDistillation, RelativeScore
from dlmrl_kit.losses.reward_tilted import RewardTilted
from dlmrl_kit.losses.self_normalised_clip import SelfNormalisedClip
from dlmrl_kit.losses.token_ppo import TokenPPO
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
    (lambda: GuidedSelfDistillation(clip=0.9), STEP),
]
all_losses = pytest.mark.parametrize(("make", "key"), LOSSES)


def poison(batch: TensorDictBase, value: float) -> TensorDict:
    """The same batch with ``value`` wherever nothing may be read: entries of weight 0, places without a token."""
    batch = batch.clone()
    dead = batch[WEIGHT] == 0
    assert dead.any()
    for name in ("advantage", "log_prob", "old_log_prob"):
        batch["selected", name][dead] = value
    for name in ("token_log_prob", "old_token_log_prob"):
        batch["selected", name][dead | torch.zeros_like(dead)] = value
        batch["selected", name][~batch[MASK]] = value
    return batch


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
def test_nan_in_a_used_entry_is_not_hidden(make: Callable[[], Objective], key: tuple[str, str]) -> None:
    batch = make_batch(1)
    i, j = entries(batch)[0]
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
    assert loss.writes() == tuple(loss.out_keys)
    batch = make_batch(4)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(batch)["loss_objective"], loss(batch)["loss_objective"])


@pytest.mark.parametrize(
    "make",
    [StepPPO, TokenPPO, SequencePPO, LengthNormalisedPPO, PerTokenSequencePPO, LinearisedBound, SelfNormalisedClip],
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


FLAGS: list[tuple[Callable[[], Any], bool, bool]] = [
    (SequencePPO, False, False),
    (LengthNormalisedPPO, False, False),
    (PerTokenSequencePPO, False, False),
    (LinearisedBound, True, False),
    (LengthWeightedReinforce, True, False),
    (DPO, False, True),
    (SelfNormalisedClip, False, True),
    (RewardTilted, False, True),
    (RelativeScore, False, True),
    (GuidedSelfDistillation, True, False),
]


@pytest.mark.parametrize(("make", "segmentwise", "needs_groups"), FLAGS)
def test_what_the_update_may_cut(make: Any, segmentwise: bool, needs_groups: bool) -> None:
    loss = make()
    assert (loss.segmentwise, loss.needs_groups) == (segmentwise, needs_groups)
