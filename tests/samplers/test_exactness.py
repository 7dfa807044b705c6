"""Every action's probability against brute force, and the policy gradient of whole enumerated MDPs.

The brute force knows nothing of the kit's formulas: low confidence is every joint proposal and the keep-k rule, random
order is every set, Plackett-Luce every ordered draw; a trajectory ends by the end-of-text rule, redone in a loop.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support.brute_force import Action, State, brute_force
from support.policies import TabularPolicy
from support.rollouts import SAMPLERS, no_prompt
from support.statistics import chi_square, chi_square_limit
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.behaviour import LOG_ZERO, Behaviour
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.likelihoods.steps import StepLogProb, StepTokenLogProb
from dlmrl_kit.samplers.base import Decision, Sampler, View
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.dynamic_low_confidence import DynamicLowConfidence
from dlmrl_kit.samplers.low_confidence import LowConfidence, order_term
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.samplers.tempered import TemperedEntropyOrder, TemperedLowConfidence, TemperedMarginOrder
from dlmrl_kit.step_schedules.even_steps import EvenSteps
from dlmrl_kit.step_schedules.linear_time_steps import LinearTimeSteps


def make(cls: type[Sampler], length: int, tokens_per_step: int = 1, **options: Any) -> Any:
    """A sampler; threshold and order temperature away from their defaults."""
    if cls is ConfidenceThreshold:
        return ConfidenceThreshold(length, threshold=(0.5, 0.4, 0.3)[tokens_per_step - 1], **options)
    if cls is PlackettLuceOrder:
        options["order_temperature"] = 0.5
    return cls(length, tokens_per_step, **options)


def decisions(actions: list[Action], length: int) -> Decision:
    committed = torch.zeros(len(actions), length, dtype=torch.bool)
    tokens, rank = torch.zeros(2, len(actions), length, dtype=torch.int64)
    for row, (positions, values) in enumerate(actions):
        for place, (i, v) in enumerate(zip(positions, values, strict=True)):
            committed[row, i], tokens[row, i], rank[row, i] = True, v, place
    return Decision(committed, tokens, rank)


def view_of(sampler: Sampler, policy: Any, state: State, rows: int) -> View:
    """The view of ``rows`` copies of a state."""
    return sampler.view(policy, no_prompt(rows), torch.tensor([state]).expand(rows, -1))


every = pytest.mark.parametrize("cls", SAMPLERS, ids=lambda c: c.__name__)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"tokens_per_step": 2, "temperature": 0.7},
    {"tokens_per_step": 3, "top_k": 2},
    {"tokens_per_step": 2, "block_length": 3, "temperature": 1.5, "top_p": 0.85},
    {"tokens_per_step": 2, "temperature": 0.0},
]
# random logits; all equal; a few values with many ties within and across positions; certain
TABLES = ["random", "uniform", "ties", "saturated"]


def table_policy(kind: str, vocab: int, length: int, forbidden: tuple[int, ...] = ()) -> TabularPolicy:
    policy = TabularPolicy(vocab, length, seed=11, scale={"uniform": 0.0, "saturated": 40.0}.get(kind, 1.0))
    if kind == "ties":
        policy.table.data.round_()
    policy.forbidden_ids = (*policy.forbidden_ids, *forbidden)  # type: ignore[assignment]
    return policy


@every
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("forbidden", [(), (1,)], ids=["", "forbidden"])
def test_every_action_has_its_probability(
    cls: type[Sampler], settings: dict[str, Any], kind: str, forbidden: tuple[int, ...]
) -> None:
    check_every_action(make(cls, 4, **settings), table_policy(kind, 3, 4, forbidden))


def check_every_action(sampler: Any, policy: TabularPolicy) -> None:
    """Compares in four states, and sums to 1."""
    m = policy.mask_id
    for state in ((m, m, m, m), (m, 2, m, m), (0, m, m, 0), (2, 0, 0, m)):
        expected = {action: p.item() for action, p in brute_force(sampler, policy, state).items()}
        assert sum(expected.values()) == pytest.approx(1, abs=1e-12)
        actions = list(expected)
        with torch.no_grad():
            view = view_of(sampler, policy, state, len(actions))
            found = sampler.action_log_prob(view, decisions(actions, 4)).exp()
        assert found.tolist() == pytest.approx(list(expected.values()), abs=1e-11)
        assert found.sum().item() == pytest.approx(1, abs=1e-10)


TEMPERED = (TemperedLowConfidence, TemperedEntropyOrder, TemperedMarginOrder)
PUBLISHED: list[tuple[type[Sampler], dict[str, Any]]] = [
    *((cls, {"temperature": 0.4}) for cls in TEMPERED),
    *((cls, {"tokens_per_step": 2, "temperature": 1.7, "top_p": 0.8}) for cls in TEMPERED),
    *((cls, {"temperature": 0.0, "top_k": 2}) for cls in TEMPERED),
    (TemperedLowConfidence, {"tokens_per_step": EvenSteps(3), "block_length": 3, "temperature": 0.6, "top_k": 2}),
    (DynamicLowConfidence, {"threshold": 0.5, "temperature": 0.7}),
    (DynamicLowConfidence, {"threshold": 0.3, "tokens_per_step": 2, "temperature": 1.5, "top_p": 0.9}),
    (DynamicLowConfidence, {"threshold": 0.6, "block_length": 3, "temperature": 0.5, "top_k": 2}),
    (DynamicLowConfidence, {"threshold": 0.4, "tokens_per_step": EvenSteps(3), "temperature": 0.8}),
    (LowConfidence, {"tokens_per_step": EvenSteps(3)}),
    (LowConfidence, {"tokens_per_step": LinearTimeSteps(4), "temperature": 0.7}),
    (RandomOrder, {"tokens_per_step": EvenSteps(2), "block_length": 3}),
    (PlackettLuceOrder, {"tokens_per_step": LinearTimeSteps(3)}),
    (TemperedEntropyOrder, {"tokens_per_step": LinearTimeSteps(4), "temperature": 0.7}),
]
published = pytest.mark.parametrize(("cls", "settings"), PUBLISHED, ids=str)


@published
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_every_action_of_published_settings_has_its_probability(
    cls: type[Sampler], settings: dict[str, Any], kind: str
) -> None:
    """States on the schedule and off it, blocks that begin within one and a last block that is short."""
    check_every_action(make(cls, 4, **settings), table_policy(kind, 3, 4, (1,)))


@published
def test_step_log_prob_gives_the_policy_gradient_of_published_settings(
    cls: type[Sampler], settings: dict[str, Any]
) -> None:
    """Also where a row ends early; greedy trajectories have no gradient to compare."""
    policy, sampler = TabularPolicy(3, 3, seed=4), make(cls, 3, **settings)
    policy.eos_ids = (2,)
    if sampler.temperature > 0:
        assert gradient_bias(sampler, policy, [StepLogProb()])[0] < 1e-10
    assert max(path.steps for path in all_paths(sampler, policy)) == sampler.max_steps


@every
@pytest.mark.parametrize("settings", SETTINGS[:2], ids=str)
def test_actions_that_cannot_be_taken_have_no_mass(cls: type[Sampler], settings: dict[str, Any]) -> None:
    """The sum over all sets and tokens, the impossible ones included; sets that the state rules out are not actions."""
    policy, sampler = table_policy("ties", 3, 3, (1,)), make(cls, 3, top_k=1, **settings)
    state = (policy.mask_id,) * 3
    possible = brute_force(sampler, policy, state)
    sets = {positions for positions, _ in possible}
    if cls is LowConfidence:
        sets = set(itertools.combinations(range(3), sampler.tokens_per_step))
    actions = [(s, v) for s in sets for v in itertools.product(range(4), repeat=len(s))]
    with torch.no_grad():
        found = sampler.action_log_prob(view_of(sampler, policy, state, len(actions)), decisions(actions, 3)).exp()
    assert len(actions) > len(possible)
    for action, value in zip(actions, found.tolist(), strict=True):
        wanted = possible[action].item() if action in possible else 0.0
        assert value == pytest.approx(wanted, abs=1e-40 if wanted == 0 else 1e-12)
    assert found.sum().item() == pytest.approx(1, abs=1e-10)


@every
@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[1], SETTINGS[3]], ids=str)
def test_draws_follow_the_probabilities(cls: type[Sampler], kind: str, settings: dict[str, Any]) -> None:
    draws, length = 20_000, 4
    policy, sampler = table_policy(kind, 2, length), make(cls, length, **settings)
    state = (policy.mask_id, 1, policy.mask_id, policy.mask_id)
    expected = brute_force(sampler, policy, state)
    every_action = decisions(list(expected), length)

    def number(decision: Decision) -> Tensor:
        """An action as one integer."""
        digits = decision.tokens + 3 * (decision.rank if cls is PlackettLuceOrder else 0) + 1
        return (digits * decision.committed * 20 ** torch.arange(length)).sum(-1)

    code = {value: place for place, value in enumerate(number(every_action).tolist())}
    assert len(code) == len(expected)
    with torch.no_grad():
        view = view_of(sampler, policy, state, draws)
    drawn = number(sampler.decide(view, sample_seeds(draws, "cpu", 3)))
    values, counts = drawn.unique(return_counts=True)
    assert set(values.tolist()) <= set(code)
    observed = [0] * len(code)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        observed[code[value]] = count
    statistic, degrees = chi_square(observed, [p.item() for p in expected.values()])
    assert degrees >= 1
    assert statistic < chi_square_limit(degrees)


@dataclass
class Path:
    """A trajectory in the making, with its brute-force probability."""

    state: State
    probability: Tensor
    commit_step: dict[int, int] = field(default_factory=dict)
    commit_rank: dict[int, int] = field(default_factory=dict)
    steps: int = 0


def all_paths(sampler: Sampler, policy: TabularPolicy) -> list[Path]:
    """Every trajectory from fully masked; a row ends when its text up to the end of text is complete."""
    length = policy.length
    running = [Path((policy.mask_id,) * length, torch.ones((), dtype=torch.float64))]
    finished = []
    while running:
        path = running.pop()
        text = path.state
        text = text[: next((place for place, token in enumerate(text) if token in policy.eos_ids), length)]
        if policy.mask_id not in text:
            finished.append(path)
            continue
        for (positions, tokens), p in brute_force(sampler, policy, path.state).items():
            after = list(path.state)
            for i, v in zip(positions, tokens, strict=True):
                after[i] = v
            running.append(
                Path(
                    tuple(after),
                    path.probability * p,
                    path.commit_step | dict.fromkeys(positions, path.steps),
                    path.commit_rank | {i: place for place, i in enumerate(positions)},
                    path.steps + 1,
                )
            )
    return finished


def as_batch(sampler: Sampler, policy: TabularPolicy, paths: list[Path]) -> TensorDict:
    """The trajectories as the sampler would have written them, all steps selected."""
    rows, length, num_steps = len(paths), policy.length, sampler.max_steps
    filler = policy.eos_ids[0] if policy.eos_ids else policy.pad_id
    final = [[filler if v == policy.mask_id else v for v in path.state] for path in paths]
    valid = torch.tensor([[t < path.steps for t in range(num_steps)] for path in paths])
    data = no_prompt(rows)
    data["completion_ids"] = torch.tensor(final)
    data["commit_step"] = torch.tensor(
        [[path.commit_step.get(i, num_steps) for i in range(length)] for path in paths], dtype=torch.int16
    )
    data["token", "commit_rank"] = torch.tensor(
        [[path.commit_rank.get(i, 0) for i in range(length)] for path in paths], dtype=torch.int16
    )
    data["selected", "step"] = torch.arange(num_steps).expand(rows, -1).contiguous()
    data["selected", "weight"] = valid.double()
    return data


def gradient_bias(sampler: Sampler, policy: TabularPolicy, likelihoods: list[Likelihood]) -> list[float]:
    """Relative error of sum_tau P(tau) r(tau) grad sum_t log pi_t against autograd of J, for each likelihood."""
    paths = all_paths(sampler, policy)
    data = as_batch(sampler, policy, paths)
    probability = torch.stack([path.probability for path in paths])
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)
    generator = torch.Generator().manual_seed(5)
    reward = torch.rand((policy.mask_id,) * policy.length, generator=generator, dtype=torch.float64)
    rewards = reward[tuple(data["completion_ids"].T)]
    (true,) = torch.autograd.grad((probability * rewards).sum(), policy.table)
    bias = []
    for likelihood in likelihoods:
        log_prob = likelihood(data.clone(), policy=policy, sampler=sampler)["selected", "log_prob"]
        (found,) = torch.autograd.grad((probability.detach() * rewards * log_prob.sum(-1)).sum(), policy.table)
        bias.append(((found - true).norm() / true.norm()).item())
    return bias


MDPS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9},
    {"tokens_per_step": 2, "temperature": 1.3},
    {"tokens_per_step": 2, "top_k": 2},
    {"block_length": 2, "top_p": 0.8, "temperature": 1.4},
]


@every
@pytest.mark.parametrize("settings", MDPS, ids=str)
@pytest.mark.parametrize("eos_ids", [(), (2,), (2, 1)], ids=str)
def test_step_log_prob_gives_the_policy_gradient(
    cls: type[Sampler], settings: dict[str, Any], eos_ids: tuple[int, ...]
) -> None:
    policy, sampler = TabularPolicy(3, 3, seed=4), make(cls, 3, **settings)
    policy.eos_ids = eos_ids
    exact, tokens_only = gradient_bias(sampler, policy, [StepLogProb(), StepTokenLogProb()])
    assert exact < 1e-10
    if cls in (LowConfidence, PlackettLuceOrder):  # the choice of positions depends on the parameters
        if not eos_ids:
            assert tokens_only > 0.05
    else:
        assert tokens_only < 1e-10


def test_tokens_at_temperature_1_are_biased_for_samples_at_another() -> None:
    """What published code does; the identity above is not satisfied by anything that looks like a log-probability."""
    policy, sampler = TabularPolicy(3, 3, seed=4), RandomOrder(3, 1, temperature=0.9)
    tempered, untempered = gradient_bias(sampler, policy, [StepTokenLogProb(), StepTokenLogProb(False)])
    assert tempered < 1e-10
    assert untempered > 0.05


def test_ended_trajectories_are_shorter() -> None:
    """The enumeration with an end of text holds paths that end early, else it would show nothing."""
    policy, sampler = TabularPolicy(3, 3, seed=4), RandomOrder(3)
    policy.eos_ids = (2,)
    assert {path.steps for path in all_paths(sampler, policy)} == {1, 2, 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 2, "temperature": 0.5}, {"top_p": 0.3}], ids=str)
def test_order_term_gradient_is_finite_for_every_action(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Also where nothing less confident exists, where all of it is filtered, and where an action is impossible."""
    behaviour = Behaviour(**options)
    actions = [((i,), (v,)) for i in range(3) for v in range(3)]
    generator = torch.Generator().manual_seed(8)
    logits = (torch.randn(3, 4, generator=generator, dtype=dtype) * 2).requires_grad_()
    hidden = torch.tensor([0.0, 0.0, 0.0, -torch.inf], dtype=dtype)
    view = View((logits + hidden).repeat(len(actions), 1), behaviour, torch.ones(len(actions), 3, dtype=torch.bool))
    terms = order_term(view, decisions(actions, 3))
    assert (terms <= 1e-6).all()
    assert (terms <= LOG_ZERO).any()  # some position would have had to draw something impossible
    assert (terms > LOG_ZERO / 2).any()
    for term in terms:
        (gradient,) = torch.autograd.grad(term, logits, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert (gradient[:, 3] == 0).all()


def test_order_term_gradient_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    actions = [((i,), (v,)) for i in range(3) for v in range(3)]

    def terms(values: Tensor) -> Tensor:
        view = View(values.repeat(len(actions), 1), Behaviour(0.8), torch.ones(len(actions), 3, dtype=torch.bool))
        return order_term(view, decisions(actions, 3))

    possible = (terms(logits) > LOG_ZERO / 2).detach()
    assert possible.sum() >= 4
    for row in possible.nonzero().flatten().tolist():
        (gradient,) = torch.autograd.grad(terms(logits)[row], logits)
        for i, v in itertools.product(range(3), range(3)):
            change = torch.zeros_like(logits)
            change[i, v] = 1e-6
            slope = (terms(logits + change)[row] - terms(logits - change)[row]) / 2e-6
            assert gradient[i, v].item() == pytest.approx(slope.item(), abs=1e-7)


def test_equally_probable_best_tokens_tie_by_position() -> None:
    """Position 0 draws either of its two best tokens, position 1 its own two: the lower position is always kept."""
    logits = torch.tensor([[0.0, 0.0, -2 / 3], [0.0, 0.0, -2 / 3]])
    sampler = LowConfidence(2, top_k=2)
    rows = 200
    view = View(logits.repeat(rows, 1), sampler.behaviour, torch.ones(rows, 2, dtype=torch.bool))
    decision = sampler.decide(view, sample_seeds(rows, "cpu", 0))
    assert decision.committed[:, 0].all()
    assert set(decision.tokens[:, 0].tolist()) == {0, 1}
    assert sampler.action_log_prob(view, decision).tolist() == pytest.approx([-math.log(2)] * rows, abs=1e-6)
