"""The learned order against brute force: probabilities, gradients in its module, greedy decoding, checkpoints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.observers import Stop, StopAfterTheFirstUpdate
from support.orders import randomise
from support.policies import TabularPolicy, tiny_policy
from support.rollouts import no_prompt
from support.runs import metric_rows, new_run, outcome, recipe
from support.seeds import seeded
from support.statistics import chi_square, chi_square_limit
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.audit import audit_algorithm, exact_estimator
from dlmrl_kit.core.behaviour import LOG_ZERO
from dlmrl_kit.core.checksums import CHECKSUMS
from dlmrl_kit.core.component import rebuilt
from dlmrl_kit.core.errors import CheckpointError, UserError
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.rollout.environment import SamplerPolicy
from dlmrl_kit.samplers.base import Decision
from dlmrl_kit.samplers.learned_order import LearnedOrder
from dlmrl_kit.training.evaluation import evaluate_path
from dlmrl_kit.training.runs import resume, train

State = tuple[int, ...]
Action = tuple[tuple[int, ...], tuple[int, ...]]
"""Positions in the order of the draw, and their tokens."""
VOCAB, LENGTH = 2, 3


def learned(policy: Any, *, scale: float = 0.7, **options: Any) -> LearnedOrder:
    """A sampler with a random module of four hidden units."""
    sampler = LearnedOrder(LENGTH, **{"tokens_per_step": 2, "width": 4, **options})
    randomise(sampler, policy, scale)
    return sampler


def dot(weights: Tensor, values: list[Tensor]) -> Tensor:
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum()


def score(sampler: LearnedOrder, features: Tensor, share: float) -> Tensor:
    """The score of one position, number by number; differentiable."""
    own: Any = sampler.order
    x = list(features)
    mean = torch.stack(x).mean()
    spread = (torch.stack([(v - mean) ** 2 for v in x]).mean() + 1e-5).sqrt()
    condition = [w[0] * share + b for w, b in zip(own.condition.weight, own.condition.bias, strict=True)]
    scale, shift = condition[: len(x)], condition[len(x) :]
    x = [(v - mean) / spread * (1 + a) + b for v, a, b in zip(x, scale, shift, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for row, bias, last in zip(own.up.weight, own.up.bias, own.down.weight[0], strict=True):
        z = dot(row, x) + bias
        total = total + last * z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return total


def brute_force(sampler: LearnedOrder, policy: TabularPolicy, state: State) -> dict[Action, Tensor]:
    """Probability of every action in a state, differentiable in table and module."""
    block = sampler.block_length
    open_ = [i for i in range(LENGTH) if state[i] == policy.mask_id]
    positions = [i for i in open_ if i // block == open_[0] // block]
    index = sum(v * (VOCAB + 1) ** i for i, v in enumerate(state))
    weight = {i: score(sampler, policy.table[index][i], len(positions) / block).exp() for i in positions}
    p = {i: (policy.table[index][i][:VOCAB] / sampler.behaviour.temperature).softmax(-1) for i in positions}
    found: dict[Action, Tensor] = {}
    for order in itertools.permutations(positions, min(sampler.tokens_per_step, len(positions))):
        chance = torch.ones((), dtype=torch.float64)
        left = list(positions)
        for i in order:
            chance = chance * weight[i] / torch.stack([weight[j] for j in left]).sum()
            left.remove(i)
        for tokens in itertools.product(range(VOCAB), repeat=len(order)):
            found[order, tokens] = chance * torch.stack([p[i][v] for i, v in zip(order, tokens, strict=True)]).prod()
    return found


def decision_of(actions: list[Action]) -> Decision:
    committed = torch.zeros(len(actions), LENGTH, dtype=torch.bool)
    tokens, rank = torch.zeros(2, len(actions), LENGTH, dtype=torch.int64)
    for row, (positions, values) in enumerate(actions):
        for place, (i, v) in enumerate(zip(positions, values, strict=True)):
            committed[row, i], tokens[row, i], rank[row, i] = True, v, place
    return Decision(committed, tokens, rank)


def view_of(sampler: LearnedOrder, policy: TabularPolicy, state: State, rows: int) -> Any:
    return sampler.view(policy, no_prompt(rows), torch.tensor([state]).expand(rows, -1))


M = VOCAB
SETTINGS: list[dict[str, Any]] = [
    {},
    {"tokens_per_step": 1, "temperature": 0.7},
    {"tokens_per_step": 3},
    {"block_length": 2, "temperature": 1.4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_action_has_its_probability(settings: dict[str, Any]) -> None:
    policy = TabularPolicy(VOCAB, LENGTH, seed=3)
    sampler = learned(policy, **settings)
    for state in ((M, M, M), (M, 0, M), (1, M, M), (0, 1, M)):
        expected = {action: p.item() for action, p in brute_force(sampler, policy, state).items()}
        assert sum(expected.values()) == pytest.approx(1, abs=1e-12)
        view = view_of(sampler, policy, state, len(expected))
        found = sampler.action_log_prob(view, decision_of(list(expected))).exp()
        assert found.tolist() == pytest.approx(list(expected.values()), abs=1e-12)


def test_draws_follow_the_probabilities() -> None:
    policy = TabularPolicy(VOCAB, LENGTH, seed=3)
    sampler, draws = learned(policy), 20_000
    expected = brute_force(sampler, policy, (M, M, M))

    def number(decision: Decision) -> Tensor:
        assert decision.rank is not None
        return ((decision.tokens + 3 * decision.rank + 1) * decision.committed * 20 ** torch.arange(LENGTH)).sum(-1)

    place = {code: i for i, code in enumerate(number(decision_of(list(expected))).tolist())}
    with torch.no_grad():
        view = view_of(sampler, policy, (M, M, M), draws)
        drawn = number(sampler.decide(view, sample_seeds(draws, "cpu", 3)))
    observed = torch.bincount(torch.tensor([place[code] for code in drawn.tolist()]), minlength=len(place))
    statistic, degrees = chi_square(observed.tolist(), [p.item() for p in expected.values()])
    assert degrees > 10
    assert statistic < chi_square_limit(degrees)


def paths(
    sampler: LearnedOrder, policy: TabularPolicy, state: State, taken: tuple[Action, ...] = ()
) -> Iterator[tuple[State, tuple[Action, ...], Tensor]]:
    """Every way from a state to its end: final tokens, actions, probability (differentiable)."""
    if M not in state:
        yield state, taken, torch.ones((), dtype=torch.float64)
        return
    for action, p in brute_force(sampler, policy, state).items():
        after = list(state)
        for i, v in zip(*action, strict=True):
            after[i] = v
        for end, actions, rest in paths(sampler, policy, tuple(after), (*taken, action)):
            yield end, actions, p * rest


def as_batch(sampler: LearnedOrder, listed: list[tuple[State, tuple[Action, ...], Tensor]]) -> TensorDict:
    """The trajectories as the sampler writes them, all steps selected."""
    data = no_prompt(len(listed))
    data["completion_ids"] = torch.tensor([end for end, _, _ in listed])
    commit, rank = torch.zeros(2, len(listed), LENGTH, dtype=torch.int16)
    for row, (_, actions, _) in enumerate(listed):
        for step, (positions, _) in enumerate(actions):
            for place, i in enumerate(positions):
                commit[row, i], rank[row, i] = step, place
    data["commit_step"], data["token", "commit_rank"] = commit, rank
    steps = torch.arange(sampler.max_steps).expand(len(listed), -1).contiguous()
    data["selected", "step"] = steps
    data["selected", "weight"] = (steps <= commit.amax(-1, keepdim=True)).double()
    return data


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[3]], ids=str)
def test_step_log_prob_gives_the_gradient_in_the_module_and_in_the_policy(settings: dict[str, Any]) -> None:
    policy = TabularPolicy(VOCAB, LENGTH, seed=3)
    sampler = learned(policy, **settings)
    listed = list(paths(sampler, policy, (M, M, M)))
    probability = torch.stack([p for _, _, p in listed])
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)
    reward = torch.rand(len(listed), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    parameters = [policy.table, *sampler.parameters()]
    true = torch.autograd.grad((probability * reward).sum(), parameters)
    step_log_prob = StepLogProb()(as_batch(sampler, listed), policy=policy, sampler=sampler)["selected", "log_prob"]
    assert torch.allclose(step_log_prob.sum(-1).exp(), probability, atol=1e-12)
    found = torch.autograd.grad((probability.detach() * reward * step_log_prob.sum(-1)).sum(), parameters)
    for a, b in zip(found, true, strict=True):
        assert b.norm() > 1e-4
        assert (a - b).norm() < 1e-10 * b.norm()


def test_the_audit_finds_no_bias_and_counts_the_module() -> None:
    estimator = exact_estimator(LearnedOrder(4, width=4, learning_rate=0.1))
    report = audit_algorithm(estimator, problems=3, attribution=False)
    assert report.exact
    assert report.relative_bias < 1e-10
    assert estimator.sampler.order is None  # the audit attached copies


def test_before_the_first_update_the_order_is_uniform() -> None:
    policy = tiny_policy()
    sampler = LearnedOrder(5, 3)
    sampler.attach(policy)
    view = sampler.view(policy, no_prompt(1), torch.full((1, 5), policy.mask_id))
    assert torch.equal(sampler.scores(view), torch.zeros(5))
    committed = torch.tensor([[True, False, True, True, False]])
    tokens = torch.full((1, 5), 6)
    decision = Decision(committed, tokens, torch.tensor([[1, 9, 0, 2, 9]]))
    expected = view.log_probs[[0, 2, 3], 6].sum() - math.log(5 * 4 * 3)
    assert sampler.action_log_prob(view, decision).item() == pytest.approx(expected.item(), abs=1e-5)
    assert not torch.equal(learned_like(sampler).scores(view), torch.zeros(5))


def learned_like(sampler: LearnedOrder) -> LearnedOrder:
    """The sampler with another last layer."""
    assert sampler.order is not None
    torch.nn.init.ones_(sampler.order.down.weight)
    return sampler


def test_greedy_decoding_takes_the_highest_scores() -> None:
    policy = TabularPolicy(VOCAB, LENGTH, seed=5)
    sampler = learned(policy, temperature=0.0)
    state = (M, M, M)
    h = [score(sampler, policy.table[26][i], 1.0).item() for i in range(LENGTH)]  # 26: the state of three masks
    order = sorted(range(LENGTH), key=lambda i: -h[i])[:2]
    best = tuple(int(policy.table[26][i][:VOCAB].argmax()) for i in order)
    view = view_of(sampler, policy, state, 1)
    drawn = sampler.decide(view, sample_seeds(1, "cpu", 0))
    assert drawn.committed[0].nonzero().flatten().tolist() == sorted(order)
    assert [int(drawn.rank[0, i]) for i in order] == [0, 1]  # type: ignore[index]
    assert [int(drawn.tokens[0, i]) for i in order] == list(best)
    (choice,) = sampler.position_choices(view)
    assert torch.equal(choice[0], drawn.committed)
    actions: list[Action] = [
        (tuple(order), best),
        (tuple(order[::-1]), best[::-1]),
        (tuple(order), (1 - best[0], best[1])),
    ]
    log_probs = sampler.action_log_prob(view_of(sampler, policy, state, 3), decision_of(actions))
    assert log_probs.tolist() == [0, LOG_ZERO, LOG_ZERO]
    rollout = sampler(seeded(no_prompt(2)), policy=policy)
    assert torch.equal(rollout["step", "log_prob"], torch.zeros(2, 2, dtype=torch.float64))


def test_attaching_twice_changes_nothing_and_copies_share_the_module() -> None:
    sampler, policy = LearnedOrder(4), tiny_policy()
    twin = sampler.at_temperature(0.0)
    with pytest.raises(RuntimeError, match="attach"):
        sampler.scores(sampler.view(policy, no_prompt(1), torch.full((1, 4), policy.mask_id)))
    sampler.attach(policy)
    module = sampler.order
    sampler.attach(tiny_policy(seed=1))
    SamplerPolicy(sampler, policy)
    assert sampler.order is module
    assert twin.order is module
    with pytest.raises(UserError, match="hidden size 32; this one has 16"):
        sampler.attach(tiny_policy(hidden=16))
    free = rebuilt(sampler)
    free.attach(tiny_policy(hidden=16))
    assert free.order is not module
    assert sampler.order is module


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_values_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        LearnedOrder(4, learning_rate=value)
    with pytest.raises(ValueError, match="width must be at least 1"):
        LearnedOrder(4, width=0)


# ------------------------------------------------------------------------------------------------------- whole runs


SHORT = ["Trainer.updates = 2", "Trainer.learning_rate = 0.001", "Trainer.eval_every = 1", "LearnedOrder.width = 8"]


@pytest.mark.thorough
def test_a_killed_run_resumes_to_the_same_modules_and_eval_uses_them(tmp_path: Path) -> None:
    whole = train(recipe("dcolt", SHORT), tmp_path / "whole")
    trained = load_file(whole.model / "components.safetensors")
    assert set(trained) == {
        f"component:LearnedOrder.order.{name}"
        for name in ("condition.weight", "condition.bias", "up.weight", "up.bias", "down.weight")
    }
    assert trained["component:LearnedOrder.order.down.weight"].abs().max() > 0

    with pytest.raises(Stop):
        train(recipe("dcolt", SHORT), tmp_path / "killed", observer=StopAfterTheFirstUpdate())
    resumed = resume(tmp_path / "killed")
    first, second = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert first == second
    assert metric_rows(tmp_path / "whole")
    assert (whole.model / "components.safetensors").read_bytes() == (
        resumed.model / "components.safetensors"
    ).read_bytes()

    again = evaluate_path(str(tmp_path / "whole"), size=4)
    assert texts(again) == texts(whole.after)
    _check_that_the_modules_matter(whole.model / "components.safetensors", tmp_path / "whole")


def texts(result: EvalResult) -> list[str]:
    return [sample["completion"] for sample in result.samples]


def _check_that_the_modules_matter(path: Path, run: Path) -> None:
    """Another module decodes otherwise; one that is missing or does not fit is refused; other recipes need none."""
    before, stored = evaluate_path(str(run), size=4, temperature=1.0), load_file(path)
    assert texts(before) == texts(evaluate_path(str(run), size=4, temperature=1.0))
    (path.parent / CHECKSUMS).unlink()  # changed on purpose
    generator = torch.Generator().manual_seed(0)
    save_file({name: 10 * torch.randn(value.shape, generator=generator) for name, value in stored.items()}, path)
    assert texts(evaluate_path(str(run), size=4, temperature=1.0)) != texts(before)
    with pytest.raises(CheckpointError, match=r"up.weight should have shape \[16, 16\], but is of shape \[8, 16\]"):
        evaluate_path(str(run), size=4, sets=["LearnedOrder.width = 16"])
    path.unlink()
    with pytest.raises(CheckpointError, match=r"LearnedOrder has trained modules of its own, but .* does not exist"):
        evaluate_path(str(run), size=4)
    assert evaluate_path(str(run), size=4, recipe="egspo").size == 4


def test_the_module_may_have_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", "dcolt", ["LearnedOrder.learning_rate = 0.5", "Trainer.weight_decay = 0.1"])
    groups = run.update.optimiser.param_groups
    own = {id(p) for p in run.algorithm.sampler.parameters()}
    rates = {(group["lr"], group["weight_decay"], id(p) in own) for group in groups for p in group["params"]}
    assert rates == {(0.01, 0.1, False), (0.01, 0.0, False), (0.5, 0.1, True), (0.5, 0.0, True)}
    assert sum(len(group["params"]) for group in groups) == len(run.parameters)
    shared = new_run(tmp_path / "shared", "dcolt")
    assert {group["lr"] for group in shared.update.optimiser.param_groups} == {0.01}
    assert sum(len(g["params"]) for g in shared.update.optimiser.param_groups) == len(run.parameters)
