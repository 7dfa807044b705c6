"""The behaviour distribution against slow loops; sampling frequencies, the tail included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlmrl_kit.behaviour import Behaviour, behaviour_log_probs, entropy, forbid, sample


def slow(logits: list[float], forbidden: set[int], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities by loops: forbidden tokens, temperature, top-k, then top-p."""
    kept = {v for v in range(len(logits)) if v not in forbidden}
    if temperature == 0:
        best = max(kept, key=lambda v: (logits[v], -v))
        return [float(v == best) for v in range(len(logits))]
    scaled = [x / temperature for x in logits]
    ranked = sorted(kept, key=lambda v: (-scaled[v], v))
    if top_k:
        kept = set(ranked[:top_k])
    mass = sum(math.exp(scaled[v]) for v in kept)
    probability = {v: math.exp(scaled[v]) / mass for v in kept}
    if top_p < 1:
        total, nucleus = 0.0, set()
        for v in sorted(kept, key=lambda v: (-probability[v], v)):
            if total >= top_p:
                break
            nucleus.add(v)
            total += probability[v]
        kept = nucleus
    mass = sum(probability[v] for v in kept)
    return [probability[v] / mass if v in kept else 0.0 for v in range(len(logits))]


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40), min_size=3, max_size=7, unique=True),
    forbidden=st.sets(st.integers(0, 2), max_size=2),
    temperature=st.sampled_from([0.0, 0.5, 0.9, 1.0, 2.0]),
    top_k=st.integers(0, 8),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
)
def test_distribution_matches_loops(
    logits: list[int], forbidden: set[int], temperature: float, top_k: int, top_p: float
) -> None:
    values = [x / 10 for x in logits]
    expected = slow(values, forbidden, temperature, top_k, top_p)
    tensor = forbid(torch.tensor([values], dtype=torch.float64), sorted(forbidden))
    found = behaviour_log_probs(tensor, Behaviour(temperature, top_k, top_p)).exp()[0]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_low_precision_logits_are_upcast() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert forbid(torch.zeros(1, 3, dtype=dtype), [0]).dtype == torch.float32


def test_entropy_ignores_filtered_tokens_in_value_and_gradient() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    log_probs = behaviour_log_probs(forbid(logits, [0]), Behaviour(0.9, top_k=3))
    value = entropy(log_probs)
    for row in range(4):
        kept = log_probs[row][log_probs[row] > -torch.inf]
        assert value[row].item() == pytest.approx(-(kept.exp() * kept).sum().item())
    value.sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert (logits.grad[:, 0] == 0).all()


def test_sampling_keeps_the_tail() -> None:
    """Half of the mass on one token and 1000 equal others, temperature 0.9 (a bfloat16 Gumbel draw loses them)."""
    logits = torch.cat([torch.tensor([math.log(0.5)]), torch.full((1000,), math.log(0.0005))])
    log_probs = behaviour_log_probs(logits[None], Behaviour(0.9))
    tail = 1 - log_probs[0, 0].exp().item()
    assert tail == pytest.approx(0.317, abs=0.001)
    draws = 40_000
    tokens = sample(log_probs.expand(draws, -1), torch.Generator().manual_seed(0))
    share = (tokens > 0).double().mean().item()
    assert abs(share - tail) < 5 * math.sqrt(tail * (1 - tail) / draws)
    assert len(tokens.unique()) > 990


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    log_probs = torch.tensor([[-torch.inf, math.log(0.3), -torch.inf, math.log(0.7), -torch.inf]])
    tokens = sample(log_probs.expand(20_000, -1), torch.Generator().manual_seed(1))
    assert set(tokens.tolist()) == {1, 3}
    assert abs((tokens == 1).double().mean().item() - 0.3) < 0.02


@pytest.mark.parametrize(
    ("values", "name"),
    [((-0.1, 0, 1.0), "temperature"), ((1.0, -1, 1.0), "top_k"), ((1.0, 0, 0.0), "top_p"), ((1.0, 0, 1.1), "top_p")],
)
def test_values_out_of_range(values: tuple[float, int, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Behaviour(*values)
