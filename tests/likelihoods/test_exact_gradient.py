"""The exact log-probability in a large vocabulary: the same values and gradients, and nothing of its size is kept."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from support.policies import tiny_policy
from support.rollouts import SAMPLERS, make, prompts, roll_out
from torch import Tensor

from dlmrl_kit.core import behaviour
from dlmrl_kit.core.behaviour import LOG_ZERO, Behaviour, certainty, log_mass
from dlmrl_kit.core.policy import LOGITS_BYTES
from dlmrl_kit.likelihoods.steps import PIECES_AT_ONCE, StepLogProb
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.learned_order import LearnedOrder
from dlmrl_kit.samplers.low_confidence import LowConfidence

N, V = 12, 17
FIRST = (LowConfidence, LearnedOrder)
CUT = [*FIRST, *(pytest.param(cls, marks=pytest.mark.thorough) for cls in SAMPLERS if cls not in FIRST)]
BEHAVIOURS = [
    Behaviour(),
    Behaviour(0.6),
    Behaviour(1.7, top_k=6),
    Behaviour(0.8, top_p=0.9),
    Behaviour(0.9, top_k=9, top_p=0.95),
]


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with a forbidden token, the positions to use, and thresholds: ordinary, all, none, and almost nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    logits[:, 3] = -torch.inf
    logits[1, :2] = torch.tensor([90.0, -30.0])  # what is below the threshold has the probability exp(-120)
    threshold = torch.linspace(-6, -0.5, N, dtype=torch.float64)
    threshold[1], threshold[2], threshold[4] = -100.0, torch.inf, -torch.inf
    return logits.to(dtype), torch.tensor([1, 2, 4, 0, 7, 8, 9, 11]), threshold.to(dtype)


def loop(logits: Tensor, kept: Behaviour, below: list[bool]) -> Tensor:
    """log of the mass of the tokens ``below``, of one position: a quotient of two sums, by the definition."""
    scaled = logits / kept.temperature
    if kept.top_k:
        least = scaled.sort(descending=True).values[kept.top_k - 1]
        scaled = torch.where(scaled < least, -torch.inf, scaled)
    if kept.top_p < 1:
        probs, order = scaled.detach().softmax(-1).sort(descending=True)
        dropped = order[(probs.cumsum(-1) - probs) >= kept.top_p]
        scaled = scaled.index_fill(-1, dropped, -torch.inf)
    inside = [v for v, yes in enumerate(below) if yes and scaled[v] > -torch.inf]
    if not inside:
        return logits[:1].sum() * 0 + LOG_ZERO
    finite = [v for v in range(V) if scaled[v] > -torch.inf]
    return scaled[inside].logsumexp(-1) - scaled[finite].logsumexp(-1)


@pytest.mark.parametrize("kept", BEHAVIOURS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_mass_and_its_gradient_equal_the_definition(
    kept: Behaviour, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(behaviour._PIECE_BYTES, True, 3 * V * torch.finfo(dtype).bits // 8)  # pieces of three positions
    logits, at, threshold = problem(dtype)
    certain = certainty(logits).at(at)
    leaf = logits.clone().requires_grad_()
    found = log_mass(leaf, at, kept, certain, threshold[at])
    slopes = torch.linspace(-1, 2, len(at), dtype=dtype)
    (gradient,) = torch.autograd.grad((found * slopes).sum(), leaf)
    with torch.no_grad():
        torch.testing.assert_close(found.detach(), log_mass(logits, at, kept, certain, threshold[at]), rtol=0, atol=0)

    exact = logits.double().requires_grad_()
    below = [(logits[i] - certain.top[n] - certain.log_total[n] < threshold[i]).tolist() for n, i in enumerate(at)]
    assert not any(below[2])  # nothing is below minus infinity
    wanted = torch.stack([loop(exact[i], kept, below[n]) for n, i in enumerate(at)])
    (wanted_gradient,) = torch.autograd.grad((wanted * slopes.double()).sum(), exact)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=0, atol=4 * tolerance)
    assert wanted_gradient.abs().max() > 0.1
    assert not gradient[[3, 5, 6, 10]].any()  # positions that are not used


def test_batched_gradients_are_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit takes many gradients in one backward pass."""
    monkeypatch.setitem(behaviour._PIECE_BYTES, True, 1)
    logits, at, threshold = problem(torch.float64)
    leaf = logits.requires_grad_()
    found = log_mass(leaf, at, Behaviour(0.9), certainty(logits).at(at), threshold[at])
    (together,) = torch.autograd.grad(found, leaf, torch.eye(len(at)), is_grads_batched=True, retain_graph=True)
    for n in range(len(at)):
        (single,) = torch.autograd.grad(found[n], leaf, retain_graph=True)
        assert torch.equal(together[n], single)


def adapted() -> TransformersPolicy:
    """A policy in float64 whose adapter is trained and whose head is not."""
    from peft import LoraConfig

    policy = tiny_policy(characters="abcdefghijklmnop", initializer_range=0.3).double()
    policy.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in policy.trainable():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    return policy


class Saved:
    """A tensor that a graph holds, as long as it holds it."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def gradient_of(policy: TransformersPolicy, sampler: Sampler, data: Any, keys: list[Any]) -> tuple[Any, Tensor, Any]:
    """The estimate, the gradient of a weighted sum of what it holds, and the shapes of what is kept for it."""
    saved: list[weakref.ref[Saved]] = []

    def pack(value: Tensor) -> Saved:
        packed = Saved(value.detach())  # an output of a node would hold the node
        saved.append(weakref.ref(packed))
        return packed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.value):
        found = StepLogProb()(data.clone(), policy=policy, sampler=sampler, keys=keys)
    kept = [tuple(packed.value.shape) for packed in (ref() for ref in saved) if packed is not None]
    names = ["log_prob", *(key[1] for key in keys)]
    values = torch.stack([found["selected", name] for name in names])
    total = (values * torch.linspace(-1, 1, values.numel(), dtype=values.dtype).reshape(values.shape)).sum()
    weights = [*(weight for _, weight in policy.trainable()), *sampler.parameters()]
    parts = torch.autograd.grad(total, weights, allow_unused=True)
    flat = [(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(parts, weights, strict=True)]
    return found, torch.cat(flat), kept


@pytest.mark.parametrize("cls", CUT, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("entropy", [False, True])
def test_gradients_taken_at_once_are_the_same(
    cls: type[Sampler], entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = adapted()
    sampler = make(cls, 6, 2, temperature=0.8)
    sampler.attach(policy)
    for weight in sampler.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    data = roll_out(sampler, policy, prompts(policy, rows=3))
    data["selected", "step"] = torch.tensor([[0, 1, 2]]).expand(3, -1)
    data["selected", "weight"] = data["step", "valid"][:, :3].double()
    keys = [("selected", "entropy")] if entropy else []
    seen: list[int] = []
    original = policy.head
    monkeypatch.setattr(policy, "head", lambda hidden: seen.append(len(hidden)) or original(hidden))
    whole, wanted, held = gradient_of(policy, sampler, data, keys)
    (predictions,) = seen
    seen.clear()
    few = 6 * 4 * policy.vocab_size  # pieces of one or two states
    monkeypatch.setitem(LOGITS_BYTES, True, few if cls is LearnedOrder else few * PIECES_AT_ONCE)
    monkeypatch.setitem(behaviour._PIECE_BYTES, True, 8 * policy.vocab_size * 2)
    cut, found, kept = gradient_of(policy, sampler, data, keys)
    torch.testing.assert_close(cut["selected", "log_prob"], whole["selected", "log_prob"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))
    assert wanted.abs().max() > 1e-3
    at_once = cls is not LearnedOrder  # which trains a module of its own, so that its pieces are computed twice
    assert len(seen) > 3
    assert sum(seen) == predictions * (1 if at_once else 2)
    assert [shape for shape in held if policy.vocab_size in shape]
    assert not at_once or not [shape for shape in kept if policy.vocab_size in shape]
