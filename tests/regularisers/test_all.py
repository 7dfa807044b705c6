"""Every regulariser: padding, NaN, micro-batches, dtypes, constants, parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.regulariser_batches import (
    DISTRIBUTION,
    ENTROPY,
    LOG_PROB,
    MASK,
    REF_DISTRIBUTION,
    REF_LOG_PROB,
    REF_TOKEN_LOG_PROB,
    TOKEN_LOG_PROB,
    WEIGHT,
    make_batch,
    run,
)
from torchrl.objectives import LossModule

from dlmrl_kit.core.component import Component
from dlmrl_kit.normalisers.means import FixedLength, PerSequence, PerStep
from dlmrl_kit.regularisers.base import Regulariser
from dlmrl_kit.regularisers.entropy_bonus import EntropyBonus
from dlmrl_kit.regularisers.kl import (
    KLK1,
    KLK2,
    KLK3,
    SequenceKLK1,
    SequenceKLK2,
    SequenceKLK3,
    TokenKLK1,
    TokenKLK2,
    TokenKLK3,
)
from dlmrl_kit.regularisers.kl_exact import KLExact

ESTIMATORS = [KLK1, KLK2, KLK3]
TOKEN_ESTIMATORS = [TokenKLK1, TokenKLK2, TokenKLK3]
SEQUENCE_ESTIMATORS = [SequenceKLK1, SequenceKLK2, SequenceKLK3]
REGULARISERS: list[tuple[Callable[[], Regulariser], tuple[str, str]]] = [
    *[(make, LOG_PROB) for make in ESTIMATORS],
    *[(lambda make=make: make(0.3, to="old"), LOG_PROB) for make in ESTIMATORS],
    *[(make, TOKEN_LOG_PROB) for make in TOKEN_ESTIMATORS],
    *[
        (lambda make=make: TokenKLK3(0.3, "old", make()), TOKEN_LOG_PROB)
        for make in (PerStep, PerSequence, FixedLength)
    ],
    *[(make, LOG_PROB) for make in SEQUENCE_ESTIMATORS],
    (lambda: SequenceKLK2(0.3, to="old"), LOG_PROB),
    (KLExact, DISTRIBUTION),
    (EntropyBonus, ENTROPY),
]
all_regularisers = pytest.mark.parametrize(("make", "key"), REGULARISERS)


@all_regularisers
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_contributes_exactly_nothing(
    make: Callable[[], Regulariser], key: tuple[str, str], junk: float
) -> None:
    batch = make_batch(1)
    clean, clean_grad = run(make(), batch, key)
    dirty = batch.clone()
    dead = batch[WEIGHT] == 0
    assert dead.any()
    for name in ("log_prob", "ref_log_prob", "old_log_prob", "entropy", "distribution", "ref_distribution"):
        dirty["selected", name][dead] = junk
    tokens = ("token_log_prob", "ref_token_log_prob", "old_token_log_prob")
    for name in tokens:
        dirty["selected", name][dead] = junk
    for name in ("distribution", "ref_distribution", *tokens):
        dirty["selected", name][~batch[MASK]] = junk
    out, grad = run(make(), dirty, key)
    for name in make().out_keys:
        assert torch.equal(out[name], clean[name])
    assert torch.equal(grad, clean_grad)
    assert (grad[dead] == 0).all()
    assert grad.abs().sum() > 0


@all_regularisers
def test_nan_in_a_used_entry_is_not_hidden(make: Callable[[], Regulariser], key: tuple[str, str]) -> None:
    batch = make_batch(1)
    i, j = (batch[WEIGHT] != 0).nonzero()[0].tolist()
    batch[key][i, j] = math.nan  # all its tokens, of which at least one counts
    assert make()(batch)[make().out_keys[0]].isnan()


@all_regularisers
def test_a_batch_of_padding_is_zero_with_zero_gradient(make: Callable[[], Regulariser], key: tuple[str, str]) -> None:
    batch = make_batch(1)
    batch[WEIGHT][:] = 0
    batch[key][:] = math.nan
    out, grad = run(make(), batch, key)
    assert all(value.item() == 0 for value in out.values())
    assert (grad == 0).all()


@all_regularisers
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_micro_batches_accumulate_exactly(make: Callable[[], Regulariser], key: tuple[str, str], data: Any) -> None:
    b = data.draw(st.integers(1, 6))
    batch = make_batch(data.draw(st.integers(0, 10_000)), b)
    cuts = sorted([*data.draw(st.lists(st.integers(0, b), max_size=4)), 0, b])
    term = make()
    name = term.out_keys[0]

    whole, grad = run(term, batch, key)
    total, count = torch.zeros((), dtype=torch.float64), 0
    leaf = batch[key].clone().requires_grad_()
    for start, stop in pairwise(cuts):
        micro = batch[start:stop].clone()
        micro[key] = leaf[start:stop]
        total = total + term(micro)[name] * term.count(micro)
        count += term.count(micro).item()
    assert count == pytest.approx(term.count(batch).item(), rel=1e-12)
    count = count or 1
    (accumulated,) = torch.autograd.grad(total / count, leaf)
    torch.testing.assert_close(total / count, whole[name], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(accumulated, grad, rtol=1e-12, atol=1e-13)


@all_regularisers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_keys_and_detached_diagnostics(
    make: Callable[[], Regulariser], key: tuple[str, str], dtype: torch.dtype
) -> None:
    term = make()
    assert isinstance(term, Component)
    assert isinstance(term, LossModule)
    batch = make_batch(2, dtype=dtype)
    batch[key].requires_grad_()
    out = term(batch.select(*term.in_keys))  # reads nothing but its in_keys
    assert list(out.keys()) == term.out_keys
    loss_key, mean_key = term.out_keys
    assert loss_key.startswith("loss_")
    assert out[loss_key].dtype == out[mean_key].dtype == dtype
    assert out[loss_key].requires_grad
    assert not out[mean_key].requires_grad
    for missing in term.in_keys:
        with pytest.raises(KeyError, match=missing[-1]):
            term(batch.exclude(missing))


@pytest.mark.parametrize(
    ("make", "key", "reference"),
    [
        *[(make, LOG_PROB, REF_LOG_PROB) for make in (*ESTIMATORS, *SEQUENCE_ESTIMATORS)],
        *[(make, TOKEN_LOG_PROB, REF_TOKEN_LOG_PROB) for make in TOKEN_ESTIMATORS],
        (KLExact, DISTRIBUTION, REF_DISTRIBUTION),
    ],
)
def test_the_reference_is_a_constant(make: type, key: Any, reference: Any) -> None:
    batch = make_batch(3)
    batch[reference].requires_grad_()
    batch[key].requires_grad_()
    make()(batch)["loss_kl"].backward()
    assert batch[reference].grad is None
    assert batch[key].grad.abs().sum() > 0


@pytest.mark.parametrize("make", [*ESTIMATORS, *TOKEN_ESTIMATORS, *SEQUENCE_ESTIMATORS, KLExact, EntropyBonus])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_coefficient_out_of_range(make: type, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{make.__name__}\.coefficient must be at least 0 and finite, got {value}"):
        make(coefficient=value)
