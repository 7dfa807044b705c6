"""What a tuple of trajectories is made of: every listed trajectory with every selection of its steps, and derivatives.

Rows that do not depend on the group are prepared once; a tuple then only indexes them. A loss sees the parameters
through the likelihood's keys alone: a gradient is (d loss / d keys) times the Jacobian of the keys. The likelihood is
computed once for each *unit*: a trajectory, the step that a segment starts at, and the step it ends before.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.functional import pad

from dlmrl_kit.audit.on_problem import ExactServices, OnProblem
from dlmrl_kit.audit.policies import Parameters
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.core.keys import (
    ITERATION,
    PROBABILITY,
    REWARD,
    SELECTED_END,
    SELECTED_LOG_PROB,
    SELECTED_STEP,
    SELECTED_UNIT,
    SELECTED_WEIGHT,
    TRAJECTORY,
    Key,
)
from dlmrl_kit.core.trajectory import every_step, num_valid
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.selectors.base import Selector

_DRAWS = 100
_UNITS = 256


@dataclass(frozen=True)
class Jacobian:
    """Likelihood keys of every unit: ``values`` [U, ...] each, ``rows`` [U * E, P] each, ``step`` int64 [U]."""

    values: dict[Key, Tensor]
    rows: dict[Key, Tensor]
    step: Tensor


@dataclass(frozen=True)
class Bank:
    """Prepared rows.

    Attributes:
        rows: TensorDict [R] with selection, old keys, ``trajectory`` and ``("selected", "unit")``.
        units: int64 [U, 3], trajectory, step and end of each.
        probability: float64 [R], given the prompt.
        forwards: float64 [R], model forwards of sampling and of the update.
    """

    rows: TensorDictBase
    units: Tensor
    probability: Tensor
    forwards: Tensor


def true_gradient(trajectories: TensorDictBase, problem: Problem, sampler: Sampler) -> Tensor:
    """Gradient [P] of J by automatic differentiation of the sum of P(trajectory) * R."""
    scored = StepLogProb()(every_step(trajectories), policy=problem.denoiser, sampler=sampler)
    total = scored[SELECTED_LOG_PROB].sum(-1)  # without the noise of a renoising sampler, which no policy draws
    weight = (total - total.detach()).exp() * trajectories[PROBABILITY]
    expected = (weight * trajectories[REWARD]).sum() / problem.prompts
    return Parameters(problem.denoiser, sampler).gradient(expected)


def select(small: OnProblem, services: ExactServices, trajectories: TensorDictBase) -> Bank:
    """Every trajectory with every outcome of the selector, prepared up to the advantage.

    Raises:
        NotImplementedError: a random selector that does not list its outcomes.
    """
    estimator = small.estimator
    selector = next(stage for stage in small.plan.rollout if stage.component is estimator.selector)
    index, steps, weights, shares = [], [], [], []
    for step, weight, share in selections(estimator.selector, trajectories):
        rows = (share > 0).nonzero().squeeze(-1)
        index.append(rows)
        steps.append(step[rows])
        weights.append(weight[rows])
        shares.append(share[rows])
    bank = trajectories[torch.cat(index)].copy()
    bank.set(SELECTED_STEP, torch.cat(steps)).set(SELECTED_WEIGHT, torch.cat(weights))
    if SELECTED_END in selector.keys:
        bank.set(SELECTED_END, estimator.selector.ends(bank, bank[SELECTED_STEP]))
    given = (*estimator.filters, estimator.selector, estimator.advantage)
    for stage in small.after_reward:
        if stage.component not in given:
            bank = services.call(stage.component, bank, stage.keys)
    with torch.no_grad():
        small.log_probs.add_fixed(bank)
    units = _number_units(bank)
    probability = bank[PROBABILITY] * torch.cat(shares)
    return Bank(bank, units, probability, _forwards(small, bank))


def _forwards(small: OnProblem, bank: TensorDictBase) -> Tensor:
    """Model forwards of sampling each row, of its update, and of its correction: float64 [R]."""
    sampled, trained = num_valid(bank).double(), (bank[SELECTED_WEIGHT] > 0).sum(-1)
    forwards = sampled + small.estimator.likelihood.forwards(small.problem.length) * trained
    if small.estimator.correction is not None:
        forwards = forwards + (num_valid(bank) if small.estimator.correction.every_step else trained)
    return forwards


def _number_units(bank: TensorDictBase) -> Tensor:
    """Adds ``("selected", "unit")``, 0 where the weight is; returns the units, int64 [U, 3]."""
    step, used = bank[SELECTED_STEP], bank[SELECTED_WEIGHT] > 0
    end = bank[SELECTED_END] if SELECTED_END in bank.keys(True) else step + 1
    code = torch.stack([bank[TRAJECTORY][:, None].expand_as(step), step, end], dim=-1)[used]
    units, index = torch.unique(code, dim=0, return_inverse=True)
    bank.set(SELECTED_UNIT, torch.zeros_like(step).masked_scatter(used, index))
    return units


def selections(selector: Selector, trajectories: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What the selector can choose: ``Selector.outcomes``, all of one width, checked against what it draws.

    Raises:
        NotImplementedError: it is random and does not list its outcomes, or lists others than it draws.
    """
    outcomes = selector.outcomes(trajectories)
    width = max(step.shape[1] for step, _, _ in outcomes)
    outcomes = [(_wide(step, width), _wide(weight.double(), width), share) for step, weight, share in outcomes]
    if "generator" in selector.requires and not _drawn_as_listed(selector, trajectories, outcomes, width):
        raise NotImplementedError(f"{type(selector).__name__} draws other selections than its outcomes() lists")
    return outcomes


def _wide(values: Tensor, width: int) -> Tensor:
    return pad(values, (0, width - values.shape[1]))


def _drawn_as_listed(
    selector: Selector, trajectories: TensorDictBase, outcomes: list[tuple[Tensor, Tensor, Tensor]], width: int
) -> bool:
    """Whether draws are among the outcomes, about as often as they should be (a chi-squared statistic)."""
    steps, weights, shares = (torch.stack(parts) for parts in zip(*outcomes, strict=True))
    counts = torch.zeros_like(shares)
    for i in range(_DRAWS):
        drawn = selector(trajectories.copy(), generator=torch.Generator().manual_seed(i))
        step, weight = drawn[SELECTED_STEP], drawn[SELECTED_WEIGHT]
        if step.shape[1] > width:
            return False
        same = (steps == _wide(step, width)) & ((weights - _wide(weight, width)).abs() < 1e-9)
        hit = same.all(-1) & (shares > 0)
        if not hit.any(0).all():
            return False
        counts += hit
    expected = _DRAWS * shares
    statistic = float(((counts - expected).square() / expected.clamp(min=1)).sum())
    cells = int((shares > 0).sum())
    return statistic < cells + 8 * math.sqrt(2 * cells)


def jacobian(small: OnProblem, trajectories: TensorDictBase, units: Tensor) -> Jacobian:
    """The recipe's likelihood for every unit, with derivatives."""
    found = [_jacobian(small, trajectories, some) for some in units.split(_UNITS)]
    values = {key: torch.cat([part.values[key] for part in found]) for key in found[0].values}
    rows = {key: torch.cat([part.rows[key] for part in found]) for key in found[0].rows}
    return Jacobian(values, rows, units[:, 1])


def _jacobian(small: OnProblem, trajectories: TensorDictBase, units: Tensor) -> Jacobian:
    """The same for some units at once: each row of the derivative costs a backward pass through all of them."""
    policy, sampler, likelihood = small.policy, small.estimator.sampler, small.estimator.likelihood
    before = trajectories[units[:, 0]].copy()
    before.set(SELECTED_STEP, units[:, 1:2]).set(SELECTED_END, units[:, 2:])
    before.set(SELECTED_WEIGHT, torch.ones(len(units), 1, dtype=torch.float64))
    before.set(ITERATION, torch.zeros(len(units), dtype=torch.int64))
    known = set(before.keys(True, True))
    likelihood.prepare(before, policy=policy, sampler=sampler, keys=small.plan.likelihood.keys)
    prepared = set(before.keys(True, True))
    after = small.log_probs.run(before, [small.plan.likelihood])
    written = {key: after[key] for key in after.keys(True, True) if key not in known and key not in prepared}
    values = {key: value.detach().squeeze(1) for key, value in written.items()}
    rows = {key: small.parameters.jacobian(value) for key, value in written.items() if value.requires_grad}
    return Jacobian(values, rows, units[:, 1])


def table(rows: TensorDictBase, keys: Collection[Key]) -> TensorDictBase:
    """The rows with only those of ``keys`` that they have."""
    have = set(rows.keys(True, True))
    return rows.select(*[key for key in keys if key in have])
