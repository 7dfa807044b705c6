"""KL estimators of steps, tokens and sequences against loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.regulariser_batches import (
    LOG_PROB,
    MASK,
    REF_LOG_PROB,
    TOKEN_LOG_PROB,
    WEIGHT,
    k1,
    k2,
    k3,
    make_batch,
    weighted_mean,
)

from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.means import FixedLength, PerSequence, PerStep, PerToken
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

ESTIMATORS = [KLK1, KLK2, KLK3]
TOKEN_ESTIMATORS = [TokenKLK1, TokenKLK2, TokenKLK3]
SEQUENCE_ESTIMATORS = [SequenceKLK1, SequenceKLK2, SequenceKLK3]

# ------------------------------------------------------------------------------------------- values


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


@pytest.mark.parametrize("make", [*ESTIMATORS, *TOKEN_ESTIMATORS, *SEQUENCE_ESTIMATORS])
def test_unknown_reference(make: type) -> None:
    with pytest.raises(ValueError, match=rf"{make.__name__}\.to must be 'reference' or 'old', got 'new'"):
        make(to="new")


def test_a_normaliser_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"TokenKLK3\.normaliser must be a normaliser, got 3"):
        TokenKLK3(normaliser=3)  # type: ignore[arg-type]


def test_what_the_update_may_cut() -> None:
    assert TokenKLK3().segmentwise
    assert not TokenKLK3(normaliser=PerSequence()).segmentwise
    assert [make().segmentwise for make in SEQUENCE_ESTIMATORS] == [True, False, False]
