"""Regularisers against loops, and what the KL estimators are in expectation, by enumerating a small categorical."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule

from dlmrl_kit.core.behaviour import LOG_ZERO
from dlmrl_kit.core.component import Component
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.means import FixedLength, PerSequence, PerStep, PerToken
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
from dlmrl_kit.regularisers.kl_exact import KLExact, categorical_kl

LOG_PROB, REF_LOG_PROB, ENTROPY = ("selected", "log_prob"), ("selected", "ref_log_prob"), ("selected", "entropy")
WEIGHT, MASK = ("selected", "weight"), ("selected", "token_mask")
DISTRIBUTION, REF_DISTRIBUTION = ("selected", "distribution"), ("selected", "ref_distribution")
TOKEN_LOG_PROB, REF_TOKEN_LOG_PROB = ("selected", "token_log_prob"), ("selected", "ref_token_log_prob")
ESTIMATORS = [KLK1, KLK2, KLK3]
TOKEN_ESTIMATORS = [TokenKLK1, TokenKLK2, TokenKLK3]
SEQUENCE_ESTIMATORS = [SequenceKLK1, SequenceKLK2, SequenceKLK3]
UNLIKE = (PerStep, PerSequence, FixedLength)
V = 6

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


def make_batch(seed: int, b: int = 5, k: int = 4, c: int = 3, dtype: torch.dtype = torch.float64) -> TensorDict:
    """A batch with padded slots, 1 .. c tokens per step, and token V - 1 filtered from both distributions."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=dtype)

    def distribution() -> Tensor:
        logits = 2 * normal(b, k, c, V)
        logits[..., -1] = -math.inf
        return logits.log_softmax(-1)

    used = torch.rand(b, k, generator=gen) > 0.2
    selected = {
        "weight": torch.where(used, 0.5 + torch.rand(b, k, generator=gen, dtype=dtype), 0.0),
        "token_mask": torch.arange(c) < torch.randint(1, c + 1, (b, k, 1), generator=gen),
        "log_prob": -normal(b, k).abs(),
        "ref_log_prob": -normal(b, k).abs(),
        "old_log_prob": -normal(b, k).abs(),
        "token_log_prob": -normal(b, k, c).abs(),
        "ref_token_log_prob": -normal(b, k, c).abs(),
        "old_token_log_prob": -normal(b, k, c).abs(),
        "entropy": normal(b, k).abs(),
        "distribution": distribution(),
        "ref_distribution": distribution(),
    }
    length = torch.randint(1, 9, (b,), generator=gen)
    return TensorDict({"selected": TensorDict(selected, [b]), "sequence": {"length": length}}, [b])


def run(term: Regulariser, batch: TensorDictBase, key: tuple[str, str]) -> tuple[TensorDict, Tensor]:
    """The regulariser's output, and the gradient of its loss at ``key``."""
    batch = batch.clone()
    leaf = batch[key].clone().requires_grad_()
    batch[key] = leaf
    out = term(batch)
    with torch.autograd.set_detect_anomaly(True):  # no NaN inside the backward pass either
        (grad,) = torch.autograd.grad(out[term.out_keys[0]], leaf)
    return out, grad


# ------------------------------------------------------------------------------------------- values


def k1(new: float, ref: float) -> float:
    return new - ref


def k2(new: float, ref: float) -> float:
    return (new - ref) ** 2 / 2


def k3(new: float, ref: float) -> float:
    return math.exp(ref - new) - (ref - new) - 1


def weighted_mean(batch: TensorDictBase, value: Callable[[int, int], float]) -> float:
    b, k = batch[WEIGHT].shape
    weight = batch[WEIGHT].tolist()
    return sum(weight[i][j] * value(i, j) for i in range(b) for j in range(k) if weight[i][j] != 0) / b


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "formula"), [(KLK1, k1), (KLK2, k2), (KLK3, k3)])
@pytest.mark.parametrize(
    ("to", "key", "name"), [("reference", "ref_log_prob", "kl"), ("old", "old_log_prob", "kl_old")]
)
def test_estimators_equal_a_loop(seed: int, make: Any, formula: Any, to: Any, key: str, name: str) -> None:
    batch = make_batch(seed)
    new, other = batch[LOG_PROB].tolist(), batch["selected", key].tolist()
    expected = weighted_mean(batch, lambda i, j: formula(new[i][j], other[i][j]))
    out = make(coefficient=0.7, to=to)(batch)
    assert list(out.keys()) == [f"loss_{name}", name]
    assert out[name].item() == pytest.approx(expected, rel=1e-10)
    assert out[f"loss_{name}"].item() == pytest.approx(0.7 * expected, rel=1e-10)


NORMALISERS: list[tuple[Callable[[], Normaliser] | None, str]] = [
    (None, "tokens"),
    (PerToken, "tokens"),
    (PerStep, "steps"),
    (PerSequence, "samples"),
    (lambda: FixedLength(7), "length 7"),
    (FixedLength, "length 1"),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("make", "formula"), [(TokenKLK1, k1), (TokenKLK2, k2), (TokenKLK3, k3)])
@pytest.mark.parametrize(
    ("to", "key", "name"), [("reference", "ref_token_log_prob", "kl"), ("old", "old_token_log_prob", "kl_old")]
)
@pytest.mark.parametrize(("normaliser", "over"), NORMALISERS)
def test_token_estimators_equal_a_loop(
    seed: int, make: Any, formula: Any, to: Any, key: str, name: str, normaliser: Any, over: str
) -> None:
    batch = make_batch(seed)
    new, other, mask, weight = (batch["selected", k].tolist() for k in (TOKEN_LOG_PROB[1], key, MASK[1], WEIGHT[1]))
    steps = []
    for i, row in enumerate(weight):
        for j, w in enumerate(row):
            values = [formula(new[i][j][c], other[i][j][c]) for c in range(3) if mask[i][j][c]]
            if w != 0:
                steps.append((i, w, sum(values), len(values)))
    weighted, tokens = sum(w * v for _, w, v, _ in steps), sum(w * n for _, w, _, n in steps)
    if over == "tokens":
        expected = weighted / tokens
    elif over == "steps":
        expected = sum(w * v / n for _, w, v, n in steps) / sum(w for _, w, _, _ in steps)
    elif over == "samples":
        rows = [[step for step in steps if step[0] == i] for i in range(5)]
        expected = sum(sum(w * v for _, w, v, _ in r) / sum(w * n for _, w, _, n in r) for r in rows if r) / 5
    else:
        expected = weighted / int(over.split()[1]) / 5
    out = make(coefficient=0.7, to=to, normaliser=normaliser and normaliser())(batch)
    assert list(out.keys()) == [f"loss_{name}", name]
    assert out[name].item() == pytest.approx(expected, rel=1e-10)
    assert out[f"loss_{name}"].item() == pytest.approx(0.7 * expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "formula"), [(SequenceKLK1, k1), (SequenceKLK2, k2), (SequenceKLK3, k3)])
@pytest.mark.parametrize(
    ("to", "key", "name"), [("reference", "ref_log_prob", "kl"), ("old", "old_log_prob", "kl_old")]
)
def test_sequence_estimators_equal_a_loop(seed: int, make: Any, formula: Any, to: Any, key: str, name: str) -> None:
    batch = make_batch(seed)
    batch[WEIGHT][3] = 0
    new, other, weight, length = (
        x.tolist() for x in (batch[LOG_PROB], batch["selected", key], batch[WEIGHT], batch["sequence", "length"])
    )
    expected = 0.0
    for i, row in enumerate(weight):
        used = [j for j, w in enumerate(row) if w != 0]
        whole, reference = (sum(row[j] * values[i][j] for j in used) for values in (new, other))
        expected += formula(whole, reference) / length[i] / 5
    out = make(coefficient=0.7, to=to)(batch)
    assert list(out.keys()) == [f"loss_{name}", name]
    assert out[name].item() == pytest.approx(expected, rel=1e-10)
    assert out[f"loss_{name}"].item() == pytest.approx(0.7 * expected, rel=1e-10)


def test_the_sequence_kl_is_espos() -> None:
    """0.5 (ELBO - ELBO_ref)^2 summed over B, over B * L, where all completions count L positions; two draws each."""
    batch = make_batch(0, k=2)
    batch[WEIGHT] = torch.full_like(batch[WEIGHT], 0.5)
    batch["sequence", "length"] = torch.full_like(batch["sequence", "length"], 12)
    elbo, reference = (batch[key].mean(-1) for key in (LOG_PROB, REF_LOG_PROB))
    expected = 0.01 * 0.5 * (elbo - reference).square().sum() / (5 * 12)
    assert SequenceKLK2()(batch)["loss_kl"].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_exact_kl_equals_a_loop(seed: int) -> None:
    batch = make_batch(seed)
    p, q, mask = batch[DISTRIBUTION].tolist(), batch[REF_DISTRIBUTION].tolist(), batch[MASK].tolist()

    def step(i: int, j: int) -> float:
        return sum(
            math.exp(p[i][j][c][v]) * (p[i][j][c][v] - q[i][j][c][v])
            for c in range(3)
            if mask[i][j][c]
            for v in range(V - 1)
        )

    out = KLExact(coefficient=0.7)(batch)
    expected = weighted_mean(batch, step)
    assert list(out.keys()) == ["loss_kl", "kl"]
    assert out["kl"].item() == pytest.approx(expected, rel=1e-10)
    assert out["loss_kl"].item() == pytest.approx(0.7 * expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_entropy_bonus_equals_a_loop(seed: int) -> None:
    batch = make_batch(seed)
    h = batch[ENTROPY].tolist()
    expected = weighted_mean(batch, lambda i, j: h[i][j])
    out, grad = run(EntropyBonus(coefficient=0.7), batch, ENTROPY)
    assert list(out.keys()) == ["loss_entropy", "entropy_bonus"]
    assert out["entropy_bonus"].item() == pytest.approx(expected, rel=1e-10)
    assert out["loss_entropy"].item() == pytest.approx(-0.7 * expected, rel=1e-10)
    torch.testing.assert_close(grad, -0.7 * batch[WEIGHT] / 5, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------- expectations


def enumerated(seed: int, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """Logits of pi (a leaf) and log-probabilities of the reference."""
    gen = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(V, generator=gen, dtype=torch.float64)
    reference = (spread * torch.randn(V, generator=gen, dtype=torch.float64)).log_softmax(-1)
    return logits.requires_grad_(), reference


def every_outcome(logits: Tensor, reference: Tensor) -> TensorDict:
    """One sample per outcome, weighted by its probability under pi: means over the batch are exact expectations."""
    log_p = logits.log_softmax(-1)
    selected = {
        "log_prob": log_p[:, None],
        "ref_log_prob": reference[:, None],
        "old_log_prob": reference[:, None],
        "weight": V * log_p.detach().exp()[:, None],
    }
    return TensorDict({"selected": TensorDict(selected, [V])}, [V])


def every_token(logits: Tensor, reference: Tensor) -> TensorDict:
    """The same as one sample of V slots, each of a single token."""
    log_p = logits.log_softmax(-1)
    selected = {
        "token_log_prob": log_p[None, :, None],
        "ref_token_log_prob": reference[None, :, None],
        "token_mask": torch.ones(1, V, 1, dtype=torch.bool),
        "weight": log_p.detach().exp()[None],
    }
    return TensorDict({"selected": TensorDict(selected, [1])}, [1])


def every_sequence(logits: Tensor, reference: Tensor) -> tuple[TensorDict, Tensor]:
    """All completions of two independent tokens, one sample each in two slots of weight 1; their probabilities."""
    log_p = logits.log_softmax(-1)
    first, second = (index.flatten() for index in torch.meshgrid(torch.arange(V), torch.arange(V), indexing="ij"))
    selected = {
        "log_prob": torch.stack([log_p[first], log_p[second]], -1),
        "ref_log_prob": torch.stack([reference[first], reference[second]], -1),
        "weight": torch.ones(V * V, 2, dtype=torch.float64),
    }
    batch = TensorDict({"selected": TensorDict(selected, [V * V])}, [V * V])
    batch["sequence"] = TensorDict({"length": torch.full((V * V,), 2)}, [V * V])
    return batch, (log_p[first] + log_p[second]).detach().exp()


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def gradient(scalar: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(scalar, logits, retain_graph=True)[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("to", "name"), [("reference", "kl"), ("old", "kl_old")])
def test_expected_values_of_the_estimators(seed: int, to: Any, name: str) -> None:
    logits, reference = enumerated(seed)
    true = kl(logits.log_softmax(-1), reference).item()
    value = {make: make(to=to)(every_outcome(logits, reference))[name].item() for make in ESTIMATORS}
    assert value[KLK1] == pytest.approx(true, rel=1e-12)
    assert value[KLK3] == pytest.approx(true, rel=1e-12)
    assert abs(value[KLK2] - true) > 0.02 * true


@pytest.mark.parametrize("seed", range(4))
def test_expected_gradients_of_the_estimators(seed: int) -> None:
    logits, reference = enumerated(seed)
    log_p = logits.log_softmax(-1)
    reverse, forward = gradient(kl(log_p, reference), logits), gradient(kl(reference, log_p), logits)
    assert (reverse - forward).norm() > 0.1 * reverse.norm()  # the two can be told apart
    got = {make: gradient(make(1.0)(every_outcome(logits, reference))["loss_kl"], logits) for make in ESTIMATORS}
    torch.testing.assert_close(got[KLK1], torch.zeros(V, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(got[KLK2], reverse, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(got[KLK3], forward, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_expectations_at_token_level(seed: int) -> None:
    """One token per slot, slots weighted by their probability: PerStep and PerToken give the mean over outcomes."""
    logits, reference = enumerated(seed)
    log_p = logits.log_softmax(-1)
    true = kl(log_p, reference)
    reverse, forward = gradient(true, logits), gradient(kl(reference, log_p), logits)
    out = {make: make(1.0)(every_token(logits, reference)) for make in TOKEN_ESTIMATORS}
    assert out[TokenKLK1]["kl"].item() == pytest.approx(true.item(), rel=1e-12)
    assert out[TokenKLK3]["kl"].item() == pytest.approx(true.item(), rel=1e-12)
    assert gradient(out[TokenKLK1]["loss_kl"], logits).abs().max() < 1e-14
    torch.testing.assert_close(gradient(out[TokenKLK2]["loss_kl"], logits), reverse, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(gradient(out[TokenKLK3]["loss_kl"], logits), forward, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_expectations_at_sequence_level(seed: int) -> None:
    """The estimates of all completions, each with its probability: the KL per token, which here is that of a token."""
    logits, reference = enumerated(seed, spread=0.7)
    log_p = logits.log_softmax(-1)
    true = kl(log_p, reference)
    reverse, forward = gradient(true, logits), gradient(kl(reference, log_p), logits)
    batch, probability = every_sequence(logits, reference)
    size = len(probability)

    def expectation(make: Any, name: str) -> Tensor:
        values = [p * make(1.0)(batch[i : i + 1])[name] for i, p in zip(range(size), probability, strict=True)]
        return torch.stack(values).sum()

    assert expectation(SequenceKLK1, "kl").item() == pytest.approx(true.item(), rel=1e-11)
    assert expectation(SequenceKLK3, "kl").item() == pytest.approx(true.item(), rel=1e-11)
    assert gradient(expectation(SequenceKLK1, "loss_kl"), logits).abs().max() < 1e-13
    torch.testing.assert_close(gradient(expectation(SequenceKLK2, "loss_kl"), logits), reverse, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(expectation(SequenceKLK3, "loss_kl"), logits), forward, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_exact_kl_is_the_kl_with_its_gradient(seed: int) -> None:
    logits, reference = enumerated(seed)
    log_p = logits.log_softmax(-1)
    selected = {
        "distribution": log_p.reshape(1, 1, 1, V),
        "ref_distribution": reference.reshape(1, 1, 1, V),
        "token_mask": torch.ones(1, 1, 1, dtype=torch.bool),
        "weight": torch.ones(1, 1, dtype=torch.float64),
    }
    out = KLExact(1.0)(TensorDict({"selected": TensorDict(selected, [1])}, [1]))
    true = kl(log_p, reference)
    assert out["kl"].item() == pytest.approx(true.item(), rel=1e-12)
    torch.testing.assert_close(gradient(out["loss_kl"], logits), gradient(true, logits), rtol=1e-12, atol=1e-14)


def test_k3_agrees_with_the_kl_to_first_order_only_near_the_reference() -> None:
    base = enumerated(0)[1]
    direction = torch.randn(V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def gap(size: float) -> float:
        logits = (base + size * direction).requires_grad_()
        got = gradient(KLK3(1.0)(every_outcome(logits, base))["loss_kl"], logits)
        true = gradient(kl(logits.log_softmax(-1), base), logits)
        return ((got - true).norm() / true.norm()).item()

    assert gap(1e-3) < 2e-3
    assert gap(1.5) > 0.1


# ------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_is_never_negative_and_never_overflows(dtype: torch.dtype) -> None:
    size = torch.logspace(-6, 3, 200, dtype=dtype)
    d = torch.cat([size, -size]).requires_grad_()
    value = KLK3().estimate(d)
    assert (value >= 0).all()
    assert value.isfinite().all()
    (grad,) = torch.autograd.grad(value.sum(), d)
    assert grad.isfinite().all()
    inside = d.detach() > -20
    torch.testing.assert_close(grad[inside], 1 - (-d.detach()[inside]).exp(), rtol=1e-5, atol=1e-6)
    assert (grad[~inside] == 0).all()
    small = torch.tensor([1e-4, -1e-4], dtype=dtype)  # exp(-d) - 1 + d loses all digits here in float32
    torch.testing.assert_close(KLK3().estimate(small), small**2 / 2, rtol=2e-3, atol=0)


def test_exact_kl_where_tokens_are_filtered() -> None:
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    log_p = torch.cat([logits.log_softmax(-1), torch.full((2,), -math.inf, dtype=torch.float64)])
    floor = math.log(0.5)
    log_q = torch.tensor([floor, floor, -math.inf, -math.inf, -1.0], dtype=torch.float64)
    # p > 0 = q at token 2: log q counts as LOG_ZERO; p = 0 at tokens 3, 4: nothing, whatever q is
    p = logits.softmax(-1)
    true = (p * (p.log() - torch.tensor([floor, floor, LOG_ZERO], dtype=torch.float64))).sum()
    got = categorical_kl(log_p, log_q)
    assert got.item() == pytest.approx(true.item(), rel=1e-12)
    grad = gradient(got, logits)
    assert grad.isfinite().all()
    torch.testing.assert_close(grad, gradient(true, logits), rtol=1e-12, atol=1e-13)


def test_exact_kl_does_not_depend_on_the_size_of_the_vocabulary() -> None:
    batch = make_batch(0)
    wider = batch.clone()
    for key in (DISTRIBUTION, REF_DISTRIBUTION):
        wider[key] = torch.nn.functional.pad(batch[key], (0, 50), value=-math.inf)
    assert KLExact()(wider)["kl"].item() == pytest.approx(KLExact()(batch)["kl"].item(), rel=1e-13)
    assert KLExact()(batch)["kl"].item() > 0.1


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
def test_nan_in_a_live_slot_is_not_hidden(make: Callable[[], Regulariser], key: tuple[str, str]) -> None:
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


@pytest.mark.parametrize("make", [*ESTIMATORS, *TOKEN_ESTIMATORS, *SEQUENCE_ESTIMATORS])
def test_unknown_reference(make: type) -> None:
    with pytest.raises(ValueError, match=rf"{make.__name__}\.to must be 'reference' or 'old', got 'new'"):
        make(to="new")


def test_a_normaliser_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"TokenKLK3\.normaliser must be a normaliser, got 3"):
        TokenKLK3(normaliser=3)  # type: ignore[arg-type]


def test_what_the_update_may_cut() -> None:
    assert TokenKLK3().slotwise
    assert not TokenKLK3(normaliser=PerSequence()).slotwise
    assert [make().slotwise for make in SEQUENCE_ESTIMATORS] == [True, False, False]
