"""Estimators of bounds, by listing every mask: how masks are distributed, and what the estimates are on average."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from support.policies import TabularPolicy
from support.rollouts import no_prompt
from support.statistics import chi_square, chi_square_limit
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_END, SELECTED_LOG_PROB
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.likelihoods.antithetic_elbo import AntitheticElbo
from dlmrl_kit.likelihoods.coupled import Coupled
from dlmrl_kit.likelihoods.coupled_elbo import CoupledElbo
from dlmrl_kit.likelihoods.elbo import Elbo
from dlmrl_kit.likelihoods.quadrature_elbo import QuadratureElbo, gauss_legendre
from dlmrl_kit.likelihoods.random_mask import RandomMask
from dlmrl_kit.likelihoods.sandwich import Sandwich
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, score
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.whole_sequence import WholeSequence

SIZE = 4
POLICY = TabularPolicy(2, SIZE, seed=1)
SAMPLER = RandomOrder(SIZE)
COMPLETION = (1, 0, 0, 1)
SETS = [frozenset(s) for x in range(SIZE + 1) for s in itertools.combinations(range(SIZE), x)]
WEIGHT = ("selected", "weight")


def batch(rows: int, draws: int, completion: Sequence[int] = COMPLETION) -> TensorDict:
    """The same completion in every row, each with a seed of its own, as ``draws`` segments."""
    length = len(completion)
    data = no_prompt(rows)
    data["completion_ids"] = torch.tensor(completion).expand(rows, -1).contiguous()
    data["commit_step"] = torch.arange(length, dtype=torch.int16).expand(rows, -1).contiguous()
    data["step", "valid"] = torch.ones(rows, length, dtype=torch.bool)
    data["seed"] = sample_seeds(rows, "cpu", 3)
    WholeSequence(draws)(data, keys=[SELECTED_END])
    data[WEIGHT] = data[WEIGHT].double()
    data["selected", "advantage"] = torch.ones(rows, draws, dtype=torch.float64)
    return data


def drawn(likelihood: SegmentLikelihood, rows: int, draws: int) -> list[list[list[frozenset[int]]]]:
    """The masked positions of every row, segment and copy."""
    data = batch(rows, draws)
    masked = likelihood.masks(likelihood.segments(data, POLICY, SAMPLER)).masked
    sets = [[frozenset(i for i in range(SIZE) if copy[i]) for copy in segment] for segment in masked.tolist()]
    return [sets[r * draws : (r + 1) * draws] for r in range(rows)]


def agrees(found: Iterable[Any], wanted: dict[Any, float]) -> None:
    """Whether outcomes come with their probabilities."""
    assert sum(wanted.values()) == pytest.approx(1)
    counts = Counter(found)
    assert set(counts) <= {outcome for outcome, p in wanted.items() if p > 0}
    statistic, degrees = chi_square([counts[outcome] for outcome in wanted], list(wanted.values()))
    assert statistic < chi_square_limit(degrees)


def enumerated(likelihood: SegmentLikelihood, draws: int, segment: int, copies: list[list[frozenset[int]]]) -> Tensor:
    """The estimate in this segment for each of these lists of copies: float64 [N]."""
    data = batch(len(copies), draws)
    data[WEIGHT] = data[WEIGHT] * (torch.arange(draws) == segment)
    masked = torch.tensor([[[i in copy for i in range(SIZE)] for copy in row] for row in copies])
    segments, given = likelihood.segments(data, POLICY, SAMPLER), Copies(masked, masked)
    return likelihood.combine(score(segments, given, POLICY, SAMPLER, True), given, segments)[0].detach()


def log_prob(position: int, masked: Iterable[int]) -> float:
    """Log-probability of the completion's token there, given the tokens that are not masked."""
    masked = set(masked)
    state = sum((POLICY.vocab if i in masked else COMPLETION[i]) * 3**i for i in range(SIZE))
    logits = POLICY.table[state, position, : POLICY.vocab].tolist()
    return logits[COMPLETION[position]] - math.log(sum(math.exp(value) for value in logits))


def of_orders() -> list[float]:
    """Log-probability of the completion in every order of decoding, one token per step."""
    orders = itertools.permutations(range(SIZE))
    return [sum(log_prob(i, order[n:]) for n, i in enumerate(order)) for order in orders]


LOG_PROBS = of_orders()
LOWER = sum(LOG_PROBS) / len(LOG_PROBS)
LOG_LIKELIHOOD = math.log(sum(map(math.exp, LOG_PROBS)) / len(LOG_PROBS))
UNIFORM_SIZE = {s: 1 / SIZE / math.comb(SIZE, len(s)) for s in SETS if s}
"""Probability of each set if its size is uniform on 1 .. SIZE."""
UNIFORM_SIZE_FROM_ZERO = {s: 1 / (SIZE + 1) / math.comb(SIZE, len(s)) for s in SETS}


def test_elbo_draws_sets_of_uniform_size_in_every_segment() -> None:
    for segments in zip(*drawn(Elbo(), 3000, 3), strict=True):
        agrees([masked for (masked,) in segments], UNIFORM_SIZE)


def test_elbo_is_unbiased() -> None:
    """The mean over all masks is the mean over all orders of decoding."""
    values = enumerated(Elbo(), 1, 0, [[s] for s in UNIFORM_SIZE])
    mean = sum(p * value for p, value in zip(UNIFORM_SIZE.values(), values.tolist(), strict=True))
    assert mean == pytest.approx(LOWER, abs=1e-12)


def test_elbo_sizes_are_stratified() -> None:
    for row in drawn(Elbo(), 20, SIZE):
        assert sorted(len(masked) for (masked,) in row) == [1, 2, 3, 4]
    for row in drawn(Elbo(), 20, 2 * SIZE):
        assert sorted(len(masked) for (masked,) in row) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_stratified_draws_spread_less_than_single_ones() -> None:
    rows = 4000
    single, four = (
        Elbo()(batch(rows, draws), policy=POLICY, sampler=SAMPLER)[SELECTED_LOG_PROB].detach().mean(-1)
        for draws in (1, 4)
    )
    assert single.mean().item() == pytest.approx(LOWER, abs=5 * single.std().item() / rows**0.5)
    assert four.mean().item() == pytest.approx(LOWER, abs=5 * four.std().item() / rows**0.5)
    assert four.var() < 0.8 * single.var() / 4


def test_antithetic_pairs_share_an_order_and_split_the_sizes() -> None:
    """Jointly: an order and a size, uniformly; the second takes the rest of the order and one position more."""
    wanted: Counter[Any] = Counter()
    for order, x in itertools.product(itertools.permutations(range(SIZE)), range(1, SIZE + 1)):
        wanted[frozenset(order[:x]), frozenset(order[x - 1 :])] += 1 / math.factorial(SIZE) / SIZE
    found = drawn(AntitheticElbo(), 2000, 4)
    for pair in (0, 2):
        agrees([(row[pair][0], row[pair + 1][0]) for row in found], dict(wanted))
    for row in found[:20]:
        sizes = [len(masked) for (masked,) in row]
        assert sizes[0] + sizes[1] == sizes[2] + sizes[3] == SIZE + 1
        assert abs(sizes[0] - sizes[2]) == SIZE // 2
    odd = [row[2][0] for row in drawn(AntitheticElbo(), 2000, 3)]
    agrees(odd, UNIFORM_SIZE)


def test_antithetic_elbo_is_unbiased_in_every_segment() -> None:
    for segment in (0, 1):
        values = enumerated(AntitheticElbo(), 2, segment, [[s] for s in UNIFORM_SIZE])
        mean = sum(p * value for p, value in zip(UNIFORM_SIZE.values(), values.tolist(), strict=True))
        assert mean == pytest.approx(LOWER, abs=1e-12)


def test_coupled_elbo_draws_complementary_sets() -> None:
    found = drawn(CoupledElbo(), 3000, 2)
    for segments in zip(*found, strict=True):
        agrees([first for first, _ in segments], UNIFORM_SIZE_FROM_ZERO)
        assert all(first | second == frozenset(range(SIZE)) and not first & second for first, second in segments)
    for row in drawn(CoupledElbo(), 20, SIZE + 1):
        assert sorted(len(first) for first, _ in row) == [0, 1, 2, 3, 4]


def test_coupled_elbo_is_unbiased() -> None:
    pairs = [[s, frozenset(range(SIZE)) - s] for s in UNIFORM_SIZE_FROM_ZERO]
    values = enumerated(CoupledElbo(), 1, 0, pairs)
    mean = sum(p * value for p, value in zip(UNIFORM_SIZE_FROM_ZERO.values(), values.tolist(), strict=True))
    assert mean == pytest.approx(LOWER, abs=1e-12)


def of_ratio(size: int, low: float, high: float) -> float:
    """Probability of a set of this size when each position is in it with probability t, t uniform on (low, high)."""
    return float(quad(lambda t: t**size * (1 - t) ** (SIZE - size) / (high - low), low, high)[0])


def test_masks_of_a_ratio_are_independent() -> None:
    low, high = 0.1, 0.9
    wanted = {s: of_ratio(len(s), low, high) for s in SETS}
    for segments in zip(*drawn(RandomMask(lower=low, upper=high), 3000, 2), strict=True):
        agrees([masked for (masked,) in segments], wanted)


def test_coupled_draws_complementary_sets() -> None:
    low, high = 0.2, 0.8
    wanted = {s: of_ratio(len(s), low, high) for s in SETS}
    found = [segment for (segment,) in drawn(Coupled(lower=low, upper=high), 3000, 1)]
    agrees([second for _, second, _ in found], wanted)
    for whole, second, third in found:
        assert whole == second | third == frozenset(range(SIZE))
        assert not second & third


# quadrature
@pytest.mark.parametrize("nodes", [1, 2, 3, 7])
def test_gauss_legendre_is_exact_for_polynomials(nodes: int) -> None:
    t, w = gauss_legendre(nodes)
    assert (t.diff() > 0).all()
    assert 0 < t[0] <= t[-1] < 1
    for degree in range(2 * nodes):
        assert (w * t**degree).sum().item() == pytest.approx(1 / (degree + 1), abs=1e-14)
    assert abs((w * t ** (2 * nodes)).sum().item() - 1 / (2 * nodes + 1)) > 1e-9


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_quadrature_is_the_sum_over_nodes_on_average(draws: int) -> None:
    """Mean over the segments of the mean over the sets of each node's size = sum of weight times f."""
    found = drawn(QuadratureElbo(), 1500, draws)
    total = 0.0
    for segment, (t, w) in enumerate(zip(*(part.tolist() for part in gauss_legendre(draws)), strict=True)):
        size = max(1, math.floor(t * SIZE))
        sets = [s for s in SETS if len(s) == size]
        agrees([row[segment][0] for row in found], {s: 1 / len(sets) for s in sets})
        mean = enumerated(QuadratureElbo(), draws, segment, [[s] for s in sets]).mean().item()
        f = sum(log_prob(i, s) for s in sets for i in s) * SIZE / size / len(sets)
        assert mean == pytest.approx(draws * w * f, abs=1e-12)
        total += mean / draws
    assert abs(total - LOWER) < 0.35 * abs(LOWER)  # four tokens are few: sizes are rounded by up to one


class CountPolicy(Policy):
    """Token 0 has log-probability g(share of masked positions) everywhere, token 1 the rest; token 2 is the mask."""

    def __init__(self, g: Any, length: int) -> None:
        super().__init__()
        self.g, self.length = g, length
        self.mask_id, self.pad_id, self.eos_ids, self.forbidden_ids, self.vocab_size = 2, 2, (), (2,), 3

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        share = (input_ids[:, -self.length :] == 2).double().mean(-1)
        zero = self.g(share)
        logits = torch.stack([zero, torch.log(-torch.expm1(zero)), torch.zeros_like(zero)], dim=-1)
        return logits[positions.nonzero(as_tuple=True)[0]]


def estimate(likelihood: SegmentLikelihood, g: Any, length: int, draws: int) -> float:
    data = batch(1, draws, [0] * length)
    return likelihood(data, policy=CountPolicy(g, length), sampler=RandomOrder(length))[SELECTED_LOG_PROB].mean().item()


def test_quadrature_of_a_polynomial_integrand() -> None:
    """L log-probabilities g(t) with g of degree 2 K - 1: exact but for t L rounded down, an error of 1 / L in t."""

    def g(t: Any) -> Any:
        return -0.1 - 0.2 * t - t**3 + 0.5 * t**5

    integral, slope = -0.1 - 0.1 - 0.25 + 0.5 / 6, 0.2 + 3
    for length in (50, 400):
        found = estimate(QuadratureElbo(), g, length, 3)
        t, w = gauss_legendre(3)
        wanted = length * float((w * g((t * length).floor() / length)).sum())
        assert found == pytest.approx(wanted, rel=1e-12)
        assert abs(found / length - integral) < slope / length
        exact = sum(g(x / length) for x in range(1, length + 1))
        assert abs(found - exact) < slope
        assert estimate(Elbo(), g, length, length) == pytest.approx(exact, rel=1e-12)
        assert estimate(CoupledElbo(), g, length, length + 1) == pytest.approx(exact, rel=1e-12)
    assert estimate(QuadratureElbo(), lambda t: -0.5 - t, 10, 1) == pytest.approx(10 * -1.0, rel=1e-12)
    assert estimate(QuadratureElbo(), lambda t: -0.7 + 0 * t, 3, 5) == pytest.approx(3 * -0.7, rel=1e-12)


# bounds
EVERY_MASK = [s for s in SETS for _ in range(12 // math.comb(SIZE, len(s))) if s]
"""Copies whose mean is the expectation over masks of uniform size: each size 12 times."""


def bounds(beta: float) -> tuple[float, float]:
    """What ``Sandwich`` gives for a positive and for a negative advantage, in the limit of many copies."""
    likelihood = Sandwich(beta=beta, mix_weight=1.0, num_copies=len(EVERY_MASK), prompt_mask_share=0.0)
    masked = torch.tensor([[[i in s for i in range(SIZE)] for s in EVERY_MASK]])
    found = []
    for advantage in (1.0, -1.0):
        data = batch(1, 1)
        data["selected", "advantage"].fill_(advantage)
        segments, copies = likelihood.segments(data, POLICY, SAMPLER), Copies(masked, masked)
        log_probs = score(segments, copies, POLICY, SAMPLER, True).detach()
        found.append(likelihood.combine(log_probs, copies, segments)[0].item())
    return found[0], found[1]


def test_sandwich_holds_the_log_likelihood() -> None:
    """lower <= log-likelihood of random-order decoding <= upper for beta >= L; upper rises with beta from lower."""
    assert len(EVERY_MASK) == 12 * SIZE
    assert LOWER < LOG_LIKELIHOOD - 1e-3, "the orders differ"
    uppers = []
    for beta in (1e-6, 0.5, 1.0, 1.5, SIZE, 2 * SIZE):
        lower, upper = bounds(beta)
        assert lower == pytest.approx(LOWER, abs=1e-12)
        by_loop = 0.0
        for i in range(SIZE):
            mean = sum(p * SIZE / len(s) * math.exp(beta * log_prob(i, s)) for s, p in UNIFORM_SIZE.items() if i in s)
            by_loop += math.log(mean) / beta
        assert upper == pytest.approx(by_loop, abs=1e-8 if beta < 1e-3 else 1e-12)
        uppers.append(upper)
    assert uppers == sorted(uppers)
    assert uppers[0] == pytest.approx(LOWER, abs=1e-5)
    assert uppers[1] > LOWER + 1e-3
    assert uppers[-2] >= LOG_LIKELIHOOD


def test_sandwich_draws_blocks_and_masks_all_behind_them() -> None:
    likelihood = Sandwich(num_copies=2, block_length=2, prompt_mask_share=0.0, earlier_mask_share=0.3)
    of_block: tuple[Counter[Any], Counter[Any]] = (Counter(), Counter())
    for inside, p in ((frozenset({0}), 0.25), (frozenset({1}), 0.25), (frozenset({0, 1}), 0.5)):
        of_block[0][inside | {2, 3}] += p
        for earlier in SETS:
            if earlier <= {0, 1}:
                of_block[1][frozenset(i + 2 for i in inside) | earlier] += (
                    p * 0.3 ** len(earlier) * 0.7 ** (2 - len(earlier))
                )
    wanted: Counter[Any] = Counter()
    for first, second in (of_block, of_block[::-1]):  # each block once, in either order
        for (a, p), (b, q) in itertools.product(first.items(), second.items()):
            wanted[a, b] += p * q / 2
    agrees([tuple(segment) for (segment,) in drawn(likelihood, 4000, 1)], dict(wanted))


def test_one_block_draws_sets_of_uniform_size() -> None:
    likelihood = Sandwich(num_copies=2, block_length=SIZE)
    for segments in zip(*[segment for (segment,) in drawn(likelihood, 3000, 1)], strict=True):
        agrees(segments, UNIFORM_SIZE)
