"""The behaviour distribution against slow loops; sampling frequencies, the tail included; confidence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.oracles import log_odds, loop_probs
from support.statistics import chi_square, chi_square_limit
from torch import Tensor

from dlmrl_kit.core.behaviour import (
    Behaviour,
    behaviour_log_probs,
    confidence,
    draw,
    entropy,
    entropy_,
    forbid,
    sample,
)
from dlmrl_kit.core.seeding import sample_seeds, uniforms


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


def noise(rows: int, seed: int) -> Tensor:
    return uniforms(sample_seeds(rows, "cpu", seed))


def test_sampling_keeps_the_tail() -> None:
    """Half of the mass on one token and 1000 equal others, temperature 0.9 (a bfloat16 Gumbel draw loses them)."""
    logits = torch.cat([torch.tensor([math.log(0.5)]), torch.full((1000,), math.log(0.0005))])
    log_probs = behaviour_log_probs(logits[None], Behaviour(0.9))
    tail = 1 - log_probs[0, 0].exp().item()
    assert tail == pytest.approx(0.317, abs=0.001)
    draws = 40_000
    tokens = sample(log_probs.expand(draws, -1), noise(draws, 0))
    share = (tokens > 0).double().mean().item()
    assert abs(share - tail) < 5 * math.sqrt(tail * (1 - tail) / draws)
    assert len(tokens.unique()) > 990


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    log_probs = torch.tensor([[-torch.inf, math.log(0.3), -torch.inf, math.log(0.7), -torch.inf]])
    tokens = sample(log_probs.expand(20_000, -1), noise(20_000, 1))
    assert set(tokens.tolist()) == {1, 3}
    assert abs((tokens == 1).double().mean().item() - 0.3) < 0.02


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 1.0, 2.0]), st.integers(0, 4), st.sampled_from([1.0, 30.0]))
def test_entropy_in_place(seed: int, temperature: float, top_k: int, spread: float) -> None:
    logits = spread * torch.randn(3, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_probs = behaviour_log_probs(logits, Behaviour(temperature, top_k))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found = entropy_(log_probs.to(dtype, copy=True))
        torch.testing.assert_close(found.double(), entropy(log_probs), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((-0.1, 0, 1.0), "temperature"),
        ((1.0, -1, 1.0), "top_k"),
        ((1.0, 0, 0.0), "top_p"),
        ((1.0, 0, 1.1), "top_p"),
        ((math.inf, 0, 1.0), "temperature"),
        ((math.nan, 0, 1.0), "temperature"),
    ],
)
def test_values_out_of_range(values: tuple[float, int, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Behaviour(*values)


@given(
    st.lists(st.integers(-2, 2), min_size=2, max_size=7), st.integers(0, 7), st.sampled_from([0.0, 0.7, 1.0]), st.data()
)
@example([0, 0, 0, 0], 2, 1.0, None)
def test_ties_at_the_last_place_of_top_k_are_kept(
    logits: list[int], top_k: int, temperature: float, data: st.DataObject | None
) -> None:
    forbidden = data.draw(st.sets(st.sampled_from(range(len(logits) - 1)))) if data else {0}
    expected = loop_probs(logits, temperature=temperature, top_k=top_k, forbidden=forbidden)
    tensor = forbid(torch.tensor([logits], dtype=torch.float64), sorted(forbidden))
    found = behaviour_log_probs(tensor, Behaviour(temperature, top_k))[0]
    assert found.exp().tolist() == pytest.approx(expected, abs=1e-12)
    assert [v > -math.inf for v in found.tolist()] == [p > 0 for p in expected]


def test_top_p_stops_where_the_mass_is_reached_exactly() -> None:
    logits = torch.zeros(1, 4)
    assert behaviour_log_probs(logits, Behaviour(top_p=0.5)).exp().tolist() == [[0.5, 0.5, 0.0, 0.0]]
    assert behaviour_log_probs(logits, Behaviour(top_p=0.51)).exp()[0].count_nonzero() == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("behaviour", [Behaviour(0.8), Behaviour(1.2, 5), Behaviour(1.0, 0, 0.7)], ids=str)
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype, behaviour: Behaviour) -> None:
    logits = (torch.randn(3, 4, 40, generator=torch.Generator().manual_seed(3)) * 3).to(dtype)
    found = behaviour_log_probs(forbid(logits, [3, 7]), behaviour)
    for i in range(3):
        for j in range(4):
            expected = loop_probs(
                logits[i, j].tolist(),
                temperature=behaviour.temperature,
                top_k=behaviour.top_k,
                top_p=behaviour.top_p,
                forbidden=[3, 7],
            )
            assert found[i, j].exp().tolist() == pytest.approx(expected, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("behaviour", [Behaviour(0.7), Behaviour(1.0, 3), Behaviour(1.3, 4, 0.8)], ids=str)
def test_gradients_are_those_of_the_kept_softmax(behaviour: Behaviour) -> None:
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    log_probs = behaviour_log_probs(forbid(logits, [1, 6]), behaviour)
    tokens, probs = log_probs.argmax(-1), log_probs.detach().exp()
    (of_token,) = torch.autograd.grad(log_probs.gather(-1, tokens[:, None]).sum(), logits, retain_graph=True)
    onehot = torch.nn.functional.one_hot(tokens, 8)
    torch.testing.assert_close(of_token, (onehot - probs) / behaviour.temperature, rtol=0, atol=1e-12)
    value = entropy(log_probs)
    (of_entropy,) = torch.autograd.grad(value.sum(), logits)  # -p_v (log p_v + H) / T
    finite = torch.where(probs > 0, log_probs.detach(), torch.zeros_like(probs))
    expected = -probs * (finite + value.detach()[:, None]) / behaviour.temperature
    torch.testing.assert_close(of_entropy, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(1.0, 1), Behaviour(1e-3)], ids=str)
def test_entropy_of_one_possible_token(behaviour: Behaviour) -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    value = entropy(behaviour_log_probs(logits, behaviour))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_follow_the_distribution(dtype: torch.dtype) -> None:
    logits = torch.randn(11, generator=torch.Generator().manual_seed(5), dtype=dtype) * 2
    log_probs = behaviour_log_probs(forbid(logits, [0, 10, 4]), Behaviour(0.9, 6))
    drawn = sample(log_probs.expand(100_000, -1), noise(100_000, 6))
    statistic, degrees = chi_square(drawn.bincount(minlength=11).tolist(), log_probs.double().exp().tolist())
    assert degrees == 5
    assert statistic < chi_square_limit(degrees)


def test_every_token_of_the_tail_has_its_share() -> None:
    """Half of the mass on one token and 1000 equal others, token by token; a bfloat16 Gumbel draw does not pass."""
    logits = torch.zeros(1001)
    logits[0] = math.log(1000)
    probs = loop_probs(logits.tolist(), temperature=0.9)
    log_probs = behaviour_log_probs(forbid(logits.bfloat16(), []), Behaviour(0.9))
    drawn = sample(log_probs.expand(40_000, -1), noise(40_000, 7))
    statistic, degrees = chi_square(
        drawn.bincount(minlength=1001).tolist(), loop_probs(logits.bfloat16().tolist(), temperature=0.9)
    )
    assert degrees == 1000
    assert statistic < chi_square_limit(degrees)

    uniform = torch.rand((4_000, 1001), generator=torch.Generator().manual_seed(8)).bfloat16()
    gumbel = -(-uniform.clamp(1e-6, 1 - 2**-8).log()).log()
    truncated = (logits.bfloat16() / 0.9 + gumbel).argmax(-1)
    statistic, degrees = chi_square(truncated.bincount(minlength=1001).tolist(), probs)
    assert statistic > 3 * chi_square_limit(degrees)


@pytest.mark.parametrize(("share", "token"), [(0.0, 1), (0.5, 3), (1 - 2**-53, 3)])
def test_extreme_noise_draws_possible_tokens(share: float, token: int) -> None:
    """The ends of the uniform draw, and a draw exactly between two tokens."""
    logits, uniform = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log(), torch.tensor([share], dtype=torch.float64)
    assert sample(logits, uniform).tolist() == [token]
    assert draw(logits, Behaviour(), uniform).tolist() == [token]
    assert uniform.item() == share  # what was given is left alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 15.0])
def test_confidence_is_log_c_or_minus_log_of_the_rest(dtype: torch.dtype, scale: float) -> None:
    """log c up to c = 1/2, -log(1 - c) - 2 log 2 above, from the log-odds x: log c = -log(1 + exp(-x))."""
    logits = torch.randn(12, 7, generator=torch.Generator().manual_seed(10), dtype=dtype) * scale
    found = confidence(forbid(logits, [2]))
    for row in range(12):
        odds = log_odds(logits[row].tolist(), [2])
        wanted = [-math.log1p(math.exp(-x)) if x <= 0 else math.log1p(math.exp(x)) - math.log(4) for x in odds]
        assert found[row].tolist() == pytest.approx(wanted, rel=1e-5, abs=2e-6)
    assert confidence(forbid(torch.zeros(1, 3), [0, 2])).tolist() == [[-math.inf, math.inf, -math.inf]]


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
def test_confidence_orders_as_softmax_in_float64(scale: float) -> None:
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(11)) * scale
    wanted, found = logits.double().softmax(-1).flatten(), confidence(logits).flatten()
    gap = wanted[:, None] - wanted[None]
    apart = gap > (1e-5 * torch.minimum(wanted, 1 - wanted)[:, None]).clamp(min=1e-14)  # beyond rounding
    assert apart.sum() > 10_000
    assert (found[:, None] > found[None])[apart].all()


@pytest.mark.parametrize("gaps", [[18.0, 20.0, 19.0, 30.0, 25.0, 34.0, 17.5], [40.0, 80.0, 60.0]], ids=str)
def test_confidence_orders_positions_that_float32_probabilities_tie(gaps: list[float]) -> None:
    """Up to 34 nats in the order of float64 probabilities; beyond, where those are 1 too, in the exact order."""
    gap = torch.tensor(gaps)
    logits = torch.stack([gap, torch.zeros_like(gap), -gap], dim=-1)
    assert (logits.softmax(-1)[:, 0] == 1).all()
    assert confidence(logits)[:, 0].argsort().tolist() == gap.argsort().tolist()
    exact = logits.double().softmax(-1)[:, 0]
    if max(gaps) < 36:
        assert exact.argsort().tolist() == gap.argsort().tolist()


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=8))
@example([0, 0, -2])
def test_equal_probabilities_have_equal_confidence(logits: list[int]) -> None:
    """A tie of probabilities is a tie of confidences to the last bit, the best token included."""
    values = confidence(torch.tensor([[v / 3 for v in logits]])).tolist()[0]
    for a, first in zip(logits, values, strict=True):
        for b, second in zip(logits, values, strict=True):
            assert (first == second) == (a == b)
            assert (first > second) == (a > b)
