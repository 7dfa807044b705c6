"""What the KL estimators are in expectation, by enumerating a small categorical."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.regulariser_batches import V, gradient, kl
from tensordict import TensorDict
from torch import Tensor

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
    """The same as one sample of V segments, each of a single token."""
    log_p = logits.log_softmax(-1)
    selected = {
        "token_log_prob": log_p[None, :, None],
        "ref_token_log_prob": reference[None, :, None],
        "token_mask": torch.ones(1, V, 1, dtype=torch.bool),
        "weight": log_p.detach().exp()[None],
    }
    return TensorDict({"selected": TensorDict(selected, [1])}, [1])


def every_sequence(logits: Tensor, reference: Tensor) -> tuple[TensorDict, Tensor]:
    """All completions of two independent tokens, one sample each in two segments of weight 1; their probabilities."""
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
    """Segments of one token, weighted by their probability: PerStep and PerToken give the mean over outcomes."""
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
