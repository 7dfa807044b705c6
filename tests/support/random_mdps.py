"""Random small MDPs for property tests, and their J by recursion over states: a truth that no component computes.

    J(state) = sum over actions of p(action) * J(next state),    J(final state) = R

with the brute-force action probabilities of ``support.brute_force`` (all proposals, sets and ordered draws).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from support.brute_force import Action, State, brute_force, probabilities
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit import Problem, exact_estimator
from dlmrl_kit.audit.enumeration import enumerate_trajectories
from dlmrl_kit.audit.estimator import Moments, moments
from dlmrl_kit.audit.measure import Ground
from dlmrl_kit.audit.on_problem import ExactServices, OnProblem
from dlmrl_kit.audit.policies import Parameters, SmallPolicy
from dlmrl_kit.core.behaviour import Behaviour
from dlmrl_kit.core.trajectory import every_step
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder

EXACT = 1e-8
STATE_SCORE: tuple[type[Sampler], ...] = (EntropyOrder, MarginOrder, LeftToRight, ConfidenceThreshold, RandomOrder)
"""Samplers whose choice of positions has no gradient: the token part is the whole log-probability."""
SAMPLERS: tuple[type[Sampler], ...] = (*STATE_SCORE, PlackettLuceOrder, LowConfidence)
SHAPES = [(vocab, length) for vocab in (2, 3, 4) for length in (2, 3, 4)]
MAX_TUPLES = 12_000


def examples(count: int) -> Any:
    """Settings of a property test; examples are exact computations, so no deadline."""
    return settings(max_examples=count, deadline=None)


@dataclass(frozen=True)
class MDP:
    """A problem and the sampler that generates its trajectories."""

    problem: Problem
    sampler: Sampler

    @property
    def policy(self) -> SmallPolicy:
        """The denoiser."""
        return self.problem.denoiser

    def listed(self) -> TensorDict:
        """Every trajectory with its probability, reward and every on-demand key of the sampler."""
        keys = self.sampler.optional_keys
        rows = enumerate_trajectories(self.sampler, self.policy, self.problem.batch(), keys=keys)
        rows.set("reward", self.problem.score(rows["completion_ids"], rows["example"]))
        return rows.set("trajectory", torch.arange(len(rows)))

    def gradient(self, value: Tensor, retain: bool = False) -> Tensor:
        """Gradient of a scalar with respect to all weights, [P]."""
        return Parameters(self.policy, self.sampler).gradient(value, retain)

    def weighted(self) -> TensorDict:
        """The same with all steps selected; a mean over rows with these weights is the exact expectation."""
        rows = every_step(self.listed())
        share = rows["probability"] * len(rows) / self.problem.prompts
        return rows.set(("selected", "weight"), rows["selected", "weight"] * share[:, None])


@st.composite
def mdps(
    draw: st.DrawFn,
    samplers: Sequence[type[Sampler]] = SAMPLERS,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    filters: bool = True,
    **fixed: Any,
) -> MDP:
    """Vocabulary, length, commits per step, blocks, temperature, filters, prompts, reward, policy and end of text."""
    vocab, length = draw(st.sampled_from(shapes))
    drawn = {
        "tokens_per_step": draw(st.integers(1, length)),
        "block_length": draw(st.sampled_from([None, 1, 2, 3])),
        "prompts": draw(st.integers(1, 2)),
        "reward": draw(st.sampled_from(["random", "sparse", "parity"])),
        "policy": draw(st.sampled_from(["tabular", "network"])),
        "eos": draw(st.integers(0, 2)),
        "seed": draw(st.integers(0, 10**6)),
        "spread": draw(st.sampled_from([0.5, 1.0, 2.0])),
    }
    problem = Problem(vocab=vocab, length=length, **(drawn | fixed))
    cls = draw(st.sampled_from(samplers))
    options: dict[str, Any] = {"temperature": draw(st.floats(0.5, 2.0))}
    if filters:
        options |= {"top_k": draw(st.sampled_from([0, 2, 3])), "top_p": draw(st.sampled_from([1.0, 0.9, 0.6]))}
    return MDP(problem, sampler_for(cls, problem, options, draw(st.floats(0.3, 0.9))))


def sampler_for(cls: type[Sampler], problem: Problem, options: dict[str, Any], own: float = 0.6) -> Sampler:
    """The sampler of a problem; ``own`` is the threshold or the temperature of the order, where there is one."""
    blocks = problem.block_length
    if cls is ConfidenceThreshold:
        return ConfidenceThreshold(problem.length, blocks, threshold=own, **options)
    if cls is PlackettLuceOrder:
        options = {**options, "order_temperature": own}
    return cls(problem.length, problem.tokens_per_step, blocks, **options)


@dataclass(frozen=True)
class AtPrompt:
    """The policy behind one prompt, as ``brute_force`` calls it: with the completion alone."""

    policy: SmallPolicy
    prompt: int
    length: int

    @property
    def mask_id(self) -> int:
        """Id of the mask."""
        return self.policy.mask_id

    @property
    def forbidden_ids(self) -> tuple[int, ...]:
        """Ids that are never committed."""
        return self.policy.forbidden_ids

    def __call__(self, ids: Tensor, _: Tensor, positions: Tensor) -> Tensor:
        """Logits [N, V] at ``positions``."""
        ids = torch.cat([torch.full_like(ids[:, :1], self.prompt), ids], dim=1)
        asked = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        return self.policy(ids, torch.ones_like(asked), asked)


class Recursion:
    """J by recursion over the states behind one prompt. ``values``: expected reward of each state met."""

    def __init__(self, mdp: MDP, prompt: int) -> None:
        self.mdp, self.prompt = mdp, prompt
        self.policy = AtPrompt(mdp.policy, prompt, mdp.problem.length)
        self.values: dict[State, Tensor] = {}
        self.actions: dict[State, dict[Action, Tensor]] = {}
        self.start: State = (mdp.policy.mask_id,) * mdp.problem.length

    def value(self, state: State | None = None) -> Tensor:
        """Expected reward from ``state`` (by default the start), with gradient."""
        state = self.start if state is None else state
        if state not in self.values:
            self.values[state] = self._value(state)
        return self.values[state]

    def _value(self, state: State) -> Tensor:
        mask, ends = self.mdp.policy.mask_id, self.mdp.policy.eos_ids
        text = state[: next((place for place, token in enumerate(state) if token in ends), len(state))]
        if mask not in text:
            final = [ends[0] if token == mask else token for token in state]
            return self.mdp.problem.score(torch.tensor([final]), torch.tensor([self.prompt]))[0]
        self.actions[state] = brute_force(self.mdp.sampler, self.policy, state)  # type: ignore[arg-type]
        found = [p * self.value(after(state, action)) for action, p in self.actions[state].items()]
        return torch.stack(found).sum()

    def token_probabilities(self, state: State, behaviour: Behaviour | None = None) -> dict[int, Tensor]:
        """Distribution [V] at each masked position, by default the behaviour distribution, with gradient."""
        masked = torch.tensor([[token == self.policy.mask_id for token in state]])
        rows = self.policy(torch.tensor([state]), masked, masked)
        forbidden, behaviour = self.policy.forbidden_ids, behaviour or self.mdp.sampler.behaviour
        positions = masked[0].nonzero().flatten().tolist()
        return {i: probabilities(row, behaviour, forbidden) for i, row in zip(positions, rows, strict=True)}

    def visits(self) -> dict[State, float]:
        """Probability of meeting each state that is not final (a state is met at most once)."""
        self.value()
        chance = dict.fromkeys(self.actions, 0.0)
        chance[self.start] = 1.0
        mask = self.mdp.policy.mask_id
        for state in sorted(self.actions, key=lambda s: -s.count(mask)):
            for action, p in self.actions[state].items():
                if (following := after(state, action)) in chance:
                    chance[following] += chance[state] * p.item()
        return chance


def after(state: State, action: Action) -> State:
    """The state an action leads to."""
    tokens = dict(zip(*action, strict=True))
    return tuple(tokens.get(i, token) for i, token in enumerate(state))


def recursions(mdp: MDP) -> list[Recursion]:
    """One for each prompt."""
    return [Recursion(mdp, prompt) for prompt in range(mdp.problem.prompts)]


def assert_equal(found: Tensor, expected: Tensor, size: float | Tensor = 0.0) -> None:
    """Equal to 1e-8 of the norm of ``expected``, or of ``size`` where that is larger (1e-13 for what is zero)."""
    error, norm = float((found - expected).norm()), max(float(expected.norm()), float(size))
    assert error <= EXACT * norm + 1e-13, f"off by {error:.3g}, norm {norm:.3g}"


class Listed:
    """A problem listed for the audit's machinery: the exact moments of any estimator, group estimators included."""

    def __init__(self, mdp: MDP, most: int = 2) -> None:
        self.ground = Ground(mdp.problem, mdp.sampler, 1, 1, 0).prepare()
        assert self.ground.trajectories is not None
        assert self.ground.values is not None
        assert self.ground.truth is not None
        self.mdp, self.rows, self.truth = mdp, self.ground.trajectories, self.ground.truth
        self.services = ExactServices(mdp.problem, mdp.sampler, self.ground.values)
        self.group_size = 1  # the largest up to ``most`` with few enough groups
        while self.group_size < most and self._tuples(self.group_size + 1) <= MAX_TUPLES:
            self.group_size += 1

    def _tuples(self, group_size: int) -> int:
        return sum(int(n) ** group_size for n in self.rows["example"].bincount())

    def moments(self, group_size: int | None = None, **parts: Any) -> Moments:
        """Of exact components around the sampler, except for ``parts`` by slot."""
        small = OnProblem(exact_estimator(self.mdp.sampler, Swaps(**parts)), self.mdp.problem)
        return moments(small, self.services, self.rows, group_size or self.group_size)
