"""Action log-probabilities are exact: they sum to 1, match frequencies, and give the true policy gradient."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from core import SAMPLERS, TabularPolicy, make, no_prompt
from torch import Tensor

from dlmrl_kit.behaviour import Behaviour, behaviour_log_probs, confidence, forbid
from dlmrl_kit.samplers.base import Decision, Sampler, View, token_log_prob
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder

VOCAB, LENGTH = 3, 3
SETTINGS = [
    {"tokens_per_step": 1},
    {"tokens_per_step": 2},
    {"tokens_per_step": 3},
    {"tokens_per_step": 1, "temperature": 0.7},
    {"tokens_per_step": 2, "temperature": 1.4, "top_k": 2},
    {"tokens_per_step": 1, "block_length": 2},
    {"tokens_per_step": 2, "top_p": 0.8},
]


def all_actions(sampler: Sampler, view: View) -> list[tuple[tuple[int, ...], tuple[int, ...], Decision]]:
    """Every action in a single state: (positions in the order of the draw, tokens, decision)."""
    allowed = view.allowed[0].nonzero().squeeze(-1).tolist()
    if isinstance(sampler, PlackettLuceOrder):
        count = int(sampler.num_commits(view)[0])
        orders = list(itertools.permutations(allowed, count))
    elif isinstance(sampler, LowConfidence | RandomOrder):
        count = int(sampler.num_commits(view)[0])
        orders = list(itertools.combinations(allowed, count))
    else:  # chosen by the state alone
        orders = [tuple(sampler.committed(view, None)[0].nonzero().squeeze(-1).tolist())]  # type: ignore[attr-defined]
    found = []
    for positions in orders:
        for tokens in itertools.product(range(VOCAB), repeat=len(positions)):
            committed = torch.zeros(1, LENGTH, dtype=torch.bool)
            values, rank = torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(1, LENGTH, dtype=torch.int64)
            for place, (position, token) in enumerate(zip(positions, tokens, strict=True)):
                committed[0, position] = True
                values[0, position] = token
                rank[0, position] = place
            found.append((positions, tokens, Decision(committed, values, rank)))
    return found


def view_of(sampler: Sampler, policy: TabularPolicy, state: list[int]) -> View:
    return sampler.view(policy, no_prompt(1), torch.tensor([state]))  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("cls", SAMPLERS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_probabilities_of_all_actions_sum_to_one(cls: type[Sampler], settings: dict[str, float], scale: float) -> None:
    sampler = make(cls, LENGTH, **settings)  # type: ignore[arg-type]
    policy = TabularPolicy(VOCAB, LENGTH, seed=1, scale=scale)  # scale 0: all confidences tie; 30: saturated
    mask = policy.mask_id
    for state in ([mask, mask, mask], [mask, 1, mask], [0, mask, mask], [mask, mask, 2], [0, 1, mask]):
        view = view_of(sampler, policy, state)
        total = sum(sampler.action_log_prob(view, d).exp().item() for _, _, d in all_actions(sampler, view))
        assert total == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("cls", SAMPLERS)
@pytest.mark.parametrize("settings", [{"tokens_per_step": 2, "temperature": 0.8}, {"tokens_per_step": 1}], ids=str)
def test_frequencies_match_probabilities(cls: type[Sampler], settings: dict[str, float]) -> None:
    sampler, policy, draws = make(cls, LENGTH, **settings), TabularPolicy(VOCAB, LENGTH, seed=2), 20_000  # type: ignore[arg-type]
    state = [policy.mask_id] * LENGTH
    many = sampler.view(policy, no_prompt(draws), torch.tensor([state]).expand(draws, -1))  # type: ignore[arg-type]
    decision = sampler.decide(many, torch.Generator().manual_seed(3))
    ordered = isinstance(sampler, PlackettLuceOrder)
    counts: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for row in range(draws):
        positions = decision.committed[row].nonzero().squeeze(-1).tolist()
        if ordered:
            assert decision.rank is not None
            positions.sort(key=lambda p: int(decision.rank[row, p]))  # noqa: B023
        counts[tuple(positions), tuple(decision.tokens[row, p].item() for p in positions)] += 1  # type: ignore[misc]
    view = view_of(sampler, policy, state)
    expected = {(p, t): sampler.action_log_prob(view, d).exp().item() for p, t, d in all_actions(sampler, view)}
    assert set(counts) <= set(expected)
    statistic = sum((counts[a] - draws * p) ** 2 / (draws * p) for a, p in expected.items() if p > 0)
    degrees = len(expected) - 1
    assert statistic < degrees + 5 * math.sqrt(2 * degrees) + 5


def proposals_step(policy: TabularPolicy, state: tuple[int, ...], k: int, temperature: float) -> dict[tuple[int, ...], Tensor]:
    """One low-confidence step by brute force: every joint proposal x0, the keep-the-k-most-confident rule, nothing else."""
    mask = policy.mask_id
    positions = [i for i, token in enumerate(state) if token == mask]
    asked = torch.tensor([[token == mask for token in state]])
    logits = forbid(policy(torch.tensor([state]), asked, asked), policy.forbidden_ids)
    probability = behaviour_log_probs(logits, Behaviour(temperature)).exp()
    certainty = logits.detach().softmax(-1)
    result: dict[tuple[int, ...], Tensor] = {}
    for proposal in itertools.product(range(VOCAB), repeat=len(positions)):
        scored = sorted(range(len(positions)), key=lambda j: (-certainty[j, proposal[j]].item(), j))
        after = list(state)
        for j in scored[:k]:
            after[positions[j]] = proposal[j]
        joint = torch.stack([probability[j, token] for j, token in enumerate(proposal)]).prod()
        key = tuple(after)
        result[key] = result[key] + joint if key in result else joint
    return result


def trajectories(policy: TabularPolicy, k: int, temperature: float) -> list[tuple[list[tuple[int, ...]], Tensor]]:
    """All trajectories of low-confidence remasking with their brute-force probabilities (differentiable)."""
    running: list[tuple[list[tuple[int, ...]], Tensor]] = [
        ([(policy.mask_id,) * LENGTH], torch.ones((), dtype=torch.float64))
    ]
    while any(policy.mask_id in path[-1] for path, _ in running):
        running = [
            ([*path, after], p * q)
            for path, p in running
            for after, q in proposals_step(policy, path[-1], k, temperature).items()
        ]
    return running


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (1, 0.9), (2, 1.0), (2, 1.3)])
def test_low_confidence_gives_the_true_policy_gradient(k: int, temperature: float) -> None:
    policy = TabularPolicy(VOCAB, LENGTH, seed=4)
    reward = dict(
        zip(
            itertools.product(range(VOCAB), repeat=LENGTH),
            torch.rand(VOCAB**LENGTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist(),
            strict=True,
        )
    )
    paths = trajectories(policy, k, temperature)
    objective = torch.stack([p * reward[path[-1]] for path, p in paths]).sum()
    (true,) = torch.autograd.grad(objective, policy.table, retain_graph=True)

    sampler = LowConfidence(LENGTH, k, temperature=temperature)
    steps = [(b, a, p.detach() * reward[path[-1]]) for path, p in paths for b, a in itertools.pairwise(path)]
    before, after = torch.tensor([s for s, _, _ in steps]), torch.tensor([s for _, s, _ in steps])
    weight = torch.stack([w for _, _, w in steps])
    view = sampler.view(policy, no_prompt(len(steps)), before)  # type: ignore[arg-type]
    decision = Decision(before != after, after)

    def bias(log_prob: Tensor) -> float:
        (estimate,) = torch.autograd.grad((weight * log_prob).sum(), policy.table, retain_graph=True)
        return ((estimate - true).norm() / true.norm()).item()

    assert bias(sampler.action_log_prob(view, decision)) < 1e-10
    assert bias(token_log_prob(view, decision)) > 0.05  # what published code uses


def test_ties_go_to_the_lower_position() -> None:
    policy = TabularPolicy(2, 3, scale=0.0)
    sampler = LowConfidence(3, 1)
    view = sampler.view(policy, no_prompt(1), torch.full((1, 3), policy.mask_id))  # type: ignore[arg-type]
    decision = sampler.decide(view, torch.Generator().manual_seed(0))
    assert decision.committed.tolist() == [[True, False, False]]
    assert sampler.action_log_prob(view, decision).exp().item() == pytest.approx(0.5)


def test_order_term_has_finite_gradients_where_an_action_is_impossible() -> None:
    policy = TabularPolicy(VOCAB, LENGTH, seed=6)
    sampler = LowConfidence(LENGTH, 1, top_k=1)
    view = sampler.view(policy, no_prompt(1), torch.full((1, LENGTH), policy.mask_id))  # type: ignore[arg-type]
    best = view.confidence.amax(-1)
    worst = int(best.argmin())  # under top_k = 1 the least confident position is never first
    token = int(view.log_probs[worst].argmax())
    committed = torch.zeros(1, LENGTH, dtype=torch.bool)
    committed[0, worst] = True
    decision = Decision(committed, torch.full((1, LENGTH), token))
    log_prob = sampler.action_log_prob(view, decision)
    assert log_prob.item() < -90
    log_prob.sum().backward()
    assert policy.table.grad is not None
    assert bool(torch.isfinite(policy.table.grad).all())


def test_confidence_orders_saturated_positions_that_float32_probabilities_tie() -> None:
    logits = torch.tensor([[20.0, 0.0, 0.0], [25.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    assert logits.softmax(-1)[1, 0] == logits.softmax(-1)[2, 0]
    order = confidence(logits)[:, 0]
    assert order[0] < order[1] < order[2]
    exact = logits.double().softmax(-1)
    expected = exact.log() - (1 - exact).log()
    torch.testing.assert_close(confidence(logits)[0].double(), expected[0], rtol=1e-5, atol=1e-5)


def test_threshold_commits_what_the_model_is_sure_of() -> None:
    policy = TabularPolicy(VOCAB, LENGTH, seed=7, scale=2.0)
    sampler = ConfidenceThreshold(LENGTH, threshold=0.6)
    view = sampler.view(policy, no_prompt(1), torch.full((1, LENGTH), policy.mask_id))  # type: ignore[arg-type]
    best = view.logits.softmax(-1).amax(-1)
    expected = (best >= 0.6) | (best == best.max())
    assert sampler.committed(view, None)[0].tolist() == expected.tolist()
