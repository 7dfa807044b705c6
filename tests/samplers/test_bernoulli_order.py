"""The Bernoulli order against brute force: probabilities, gradients, audits; greedy decoding, a frozen policy."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.orders import randomise
from support.policies import TabularPolicy
from support.rollouts import no_prompt
from support.runs import new_run, prepared, rollout
from support.seeds import seeded
from support.statistics import chi_square, chi_square_limit
from torch import Tensor

from dlmrl_kit.advantages.few_forwards import PenalisedForwards
from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit import Problem, audit_algorithm, exact_estimator
from dlmrl_kit.core.behaviour import LOG_ZERO
from dlmrl_kit.core.component import rebuilt
from dlmrl_kit.samplers.base import Decision
from dlmrl_kit.samplers.bernoulli_order import BernoulliOrder

State = tuple[int, ...]
Action = tuple[tuple[int, ...], tuple[int, ...]]
"""Positions in ascending order, and their tokens."""
VOCAB, LENGTH = 2, 3


def bernoulli(policy: Any, *, scale: float = 0.7, **options: Any) -> BernoulliOrder:
    """A sampler with a random module of four hidden units."""
    sampler = BernoulliOrder(LENGTH, **{"width": 4, **options})
    randomise(sampler, policy, scale)
    return sampler


def table() -> TabularPolicy:
    return TabularPolicy(VOCAB, LENGTH, seed=3)


def scored(sampler: BernoulliOrder, policy: TabularPolicy, state: State) -> tuple[list[int], Any, Tensor]:
    """The open positions of the block, what the sampler sees there, and the module's scores."""
    open_ = [i for i in range(LENGTH) if state[i] == policy.mask_id]
    allowed = [i for i in open_ if i // sampler.block_length == open_[0] // sampler.block_length]
    view = sampler.view(policy, no_prompt(1), torch.tensor([state]))
    assert view.allowed[0].nonzero().squeeze(-1).tolist() == allowed
    return allowed, view, sampler.scores(view)


def brute_force(sampler: BernoulliOrder, policy: TabularPolicy, state: State) -> dict[Action, Tensor]:
    """Adds up all draws of all positions, the empty one with its fallback, and all tokens; differentiable."""
    allowed, view, scores = scored(sampler, policy, state)
    s = {i: 1 / (1 + (-h).exp()) for i, h in zip(allowed, scores, strict=True)}
    best = max(allowed, key=lambda i: (s[i].item(), -i))
    tokens = (view.logits[:, :VOCAB] / (sampler.temperature or 1)).softmax(-1)
    if sampler.temperature == 0:
        tokens = torch.nn.functional.one_hot(view.logits[:, :VOCAB].argmax(-1), VOCAB).double()
    p = dict(zip(allowed, tokens, strict=True))
    found: dict[Action, Tensor] = {}
    for drawn in itertools.product([False, True], repeat=len(allowed)):
        chance = torch.ones((), dtype=torch.float64)
        for i, yes in zip(allowed, drawn, strict=True):
            chance = chance * (s[i] if yes else 1 - s[i])
        positions = tuple(i for i, yes in zip(allowed, drawn, strict=True) if yes) or (best,)
        for values in itertools.product(range(VOCAB), repeat=len(positions)):
            whole = chance * torch.stack([p[i][v] for i, v in zip(positions, values, strict=True)]).prod()
            found[positions, values] = found.get((positions, values), torch.zeros((), dtype=torch.float64)) + whole
    return found


def decisions(actions: list[Action]) -> Decision:
    committed = torch.zeros(len(actions), LENGTH, dtype=torch.bool)
    tokens = torch.zeros(len(actions), LENGTH, dtype=torch.int64)
    for row, (positions, values) in enumerate(actions):
        committed[row, list(positions)] = True
        tokens[row, list(positions)] = torch.tensor(values)
    return Decision(committed, tokens)


def view_of(sampler: BernoulliOrder, policy: TabularPolicy, state: State, rows: int) -> Any:
    return sampler.view(policy, no_prompt(rows), torch.tensor([state]).expand(rows, -1))


def states(policy: TabularPolicy) -> list[State]:
    m = policy.mask_id
    return [(m, m, m), (m, 1, m), (0, m, 0)]


OPTIONS: list[dict[str, Any]] = [{}, {"temperature": 0.6, "block_length": 2}, {"temperature": 0.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_action_has_its_probability(options: dict[str, Any]) -> None:
    policy = table()
    sampler = bernoulli(policy, **options)
    for state in states(policy):
        expected = {action: p.item() for action, p in brute_force(sampler, policy, state).items()}
        actions = list(expected)
        found = sampler.action_log_prob(view_of(sampler, policy, state, len(actions)), decisions(actions)).exp()
        assert found.tolist() == pytest.approx(list(expected.values()), abs=1e-12)
        assert found.sum().item() == pytest.approx(1, abs=1e-12)


def test_its_gradient_in_table_and_module_is_that_of_the_brute_force() -> None:
    policy = table()
    sampler = bernoulli(policy)
    weights = [policy.table, *sampler.parameters()]
    for state in states(policy):
        expected = brute_force(sampler, policy, state)
        actions = list(expected)
        found = sampler.action_log_prob(view_of(sampler, policy, state, len(actions)), decisions(actions))
        for row, action in enumerate(actions):
            ours = torch.autograd.grad(found[row], weights, retain_graph=True, allow_unused=True)
            theirs = torch.autograd.grad(expected[action].log(), weights, retain_graph=True, allow_unused=True)
            for a, b, weight in zip(ours, theirs, weights, strict=True):
                a, b = (torch.zeros_like(weight) if g is None else g for g in (a, b))
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_draws_have_these_probabilities() -> None:
    policy = table()
    sampler = bernoulli(policy)
    state, rows = states(policy)[0], 4000
    view = view_of(sampler, policy, state, rows)
    decision = sampler.decide(view, torch.arange(rows) * 7919 + 13)
    seen: dict[Action, int] = {}
    for committed, tokens in zip(decision.committed, decision.tokens, strict=True):
        positions = tuple(committed.nonzero().squeeze(-1).tolist())
        action = (positions, tuple(tokens[list(positions)].tolist()))
        seen[action] = seen.get(action, 0) + 1
    expected = {action: p.item() for action, p in brute_force(sampler, policy, state).items()}
    assert set(seen) <= set(expected)
    found, degrees = chi_square([seen.get(action, 0) for action in expected], list(expected.values()))
    assert degrees > 10
    assert found < chi_square_limit(degrees)


@pytest.mark.parametrize("block_length", [2, pytest.param(None, marks=pytest.mark.thorough)])
def test_the_audit_lists_every_action_and_finds_the_gradient_unbiased(block_length: int | None) -> None:
    problem = Problem(vocab=2, length=3, block_length=block_length, policy="network", seed=5)
    sampler = BernoulliOrder(3, block_length=block_length, temperature=0.9, width=4)
    report = audit_algorithm(exact_estimator(sampler), problems=[problem], group_size=2, attribution=False)
    assert report.exact
    assert report.verdict == "unbiased"
    assert report.relative_bias < 1e-10
    free = exact_estimator(sampler, Swaps(advantage=PenalisedForwards(price=0.0)))
    found = audit_algorithm(free, problems=[problem], group_size=2, attribution=False)
    assert found.scale == pytest.approx(0.5, abs=1e-10)
    assert found.relative_bias_after_scale < 1e-8
    priced = exact_estimator(sampler, Swaps(advantage=PenalisedForwards(price=1.0)))
    assert audit_algorithm(priced, problems=[problem], group_size=2, attribution=False).relative_bias > 0.05


def test_the_released_fallback_would_be_biased() -> None:
    """log s of the position that is fallen back on: not the probability of what happened."""
    policy = table()
    sampler = bernoulli(policy)
    state = states(policy)[0]
    allowed, _, scores = scored(sampler, policy, state)
    best = max(range(3), key=lambda i: scores[i].item())
    ours = [p for action, p in brute_force(sampler, policy, state).items() if action[0] == (allowed[best],)]
    s = scores.sigmoid()
    released = s[best] * torch.stack([1 - s[i] for i in range(3) if i != best]).prod()
    assert sum(p.item() for p in ours) == pytest.approx((released / s[best]).item())
    assert sum(p.item() for p in ours) > 1.05 * released.item()


def test_decoded_greedily_it_takes_what_is_more_likely_than_not() -> None:
    policy = table()
    sampler = bernoulli(policy, scale=2.0)
    greedy = sampler.at_temperature(0.0)
    assert isinstance(greedy, BernoulliOrder)
    assert not sampler.greedy_order
    assert greedy.order is sampler.order
    for state in states(policy):
        allowed, view, scores = scored(sampler, policy, state)
        likely = tuple(i for i, h in zip(allowed, scores, strict=True) if h > 0)
        positions = likely or (allowed[int(scores.argmax())],)
        best = dict(zip(allowed, view.logits.argmax(-1).tolist(), strict=True))
        view = greedy.view(policy, no_prompt(1), torch.tensor([state]))
        decision = greedy.decide(view, torch.tensor([5]))
        assert tuple(decision.committed[0].nonzero().squeeze(-1).tolist()) == positions
        assert [decision.tokens[0, i].item() for i in positions] == [best[i] for i in positions]
        assert greedy.action_log_prob(view, decision).item() == 0
        assert [tuple(choice.nonzero()[:, 1].tolist()) for choice, _ in greedy.position_choices(view)] == [positions]
        other = decisions([(tuple(allowed), tuple(best[i] for i in allowed))])
        if tuple(allowed) != positions:
            assert greedy.action_log_prob(view, other).item() == pytest.approx(LOG_ZERO)
    back = greedy.at_temperature(0.5)
    assert isinstance(back, BernoulliOrder)
    assert not back.greedy_order


def test_the_first_probability_is_that_of_every_position_and_sets_the_speed() -> None:
    policy = table()
    slow, fast = (BernoulliOrder(LENGTH, first_probability=p, width=4) for p in (0.05, 0.95))
    steps = []
    for sampler in (slow, fast):
        sampler.attach(policy)
        _, _, scores = scored(sampler, policy, states(policy)[0])
        assert scores.sigmoid().tolist() == pytest.approx([sampler.first_probability] * LENGTH)
        found = sampler(seeded(no_prompt(300)), policy=policy)
        steps.append(found["step", "valid"].sum(-1).double().mean().item())
    assert steps[0] > 2.7
    assert steps[1] < 1.3


def test_a_frozen_denoiser_stays_as_it_is_while_the_module_learns(tmp_path: Path) -> None:
    run = new_run(tmp_path, "learned_unmasking", sets=["Trainer.updates = 2"])
    before = {name: p.detach().clone() for name, p in run.policy.trainable()}
    own = [p.detach().clone() for p in run.algorithm.sampler.parameters()]
    reward = 0.0
    for number in range(2):
        batch = rollout(run, number) if number else rollout(run)
        reward += batch["advantage"].abs().sum().item()
        run.update.learn(prepared(run.update, batch), number)
    assert reward > 0, "or nothing would be learned"
    assert all(torch.equal(p, before[name]) for name, p in run.policy.trainable())
    assert any(not torch.equal(p, old) for p, old in zip(run.algorithm.sampler.parameters(), own, strict=True))


def test_the_gradient_reaches_the_policy_unless_it_is_frozen() -> None:
    for trains_policy in (True, False):
        policy = table()
        sampler = bernoulli(policy, temperature=0.0, trains_policy=trains_policy)
        view = view_of(sampler, policy, states(policy)[0], 1)
        found = sampler.action_log_prob(view, sampler.decide(view, torch.tensor([1])))
        (grad,) = torch.autograd.grad(found.sum(), [policy.table], allow_unused=True)
        assert (grad is not None and bool(grad.abs().sum() > 0)) == trains_policy


@pytest.mark.parametrize(("name", "value"), [("first_probability", 0.0), ("first_probability", 1.0), ("width", 0)])
def test_parameters_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"BernoulliOrder\.{name} must be .*got {value}"):
        BernoulliOrder(4, **{name: value})  # type: ignore[arg-type]


def test_it_is_made_again_with_its_settings() -> None:
    sampler = BernoulliOrder(6, 3, 0.7, first_probability=0.4, trains_policy=False)
    twin = rebuilt(sampler)
    assert (twin.first_score, twin.trains_policy, twin.block_length) == (sampler.first_score, False, 3)
    assert math.isclose(1 / (1 + math.exp(-sampler.first_score)), 0.4)
