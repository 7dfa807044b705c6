"""The bank: every listed trajectory with every selection of its steps, prepared once for all groups it is a member of.

Whatever does not depend on the group is computed here. A group of G trajectories then is a tuple of G indices into the
rows of the bank. A loss depends on the parameters only through the likelihood's keys, so its gradient is
(d loss / d keys) times the Jacobian of the keys. The Jacobian is computed once for each *unit*, which is a trajectory
with the first step of a segment and the step that it ends before.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

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
    SEED,
    SELECTED_END,
    SELECTED_LOG_PROB,
    SELECTED_STEP,
    SELECTED_UNIT,
    SELECTED_WEIGHT,
    TRAJECTORY,
    Key,
)
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.core.trajectory import every_step, num_valid
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.selectors.base import Selector

_DRAWS = 100  # of a selector, to compare with the outcomes it lists
_UNITS = 256  # differentiated at once


@dataclass(frozen=True)
class Jacobian:
    """The likelihood's keys for all U units, with derivatives.

    Attributes:
        values: by key, [U, ...], with E numbers for each unit.
        rows: by key, [U * E, P], the derivative of each number by the P parameters; keys without gradient are left out.
        step: int64 [U], the first step of each unit.
    """

    values: dict[Key, Tensor]
    rows: dict[Key, Tensor]
    step: Tensor


@dataclass(frozen=True)
class Bank:
    """Every trajectory with every selection of its steps: R rows.

    Attributes:
        rows: TensorDict [R] with selection, old keys, ``trajectory`` and ``("selected", "unit")``.
        units: int64 [U, 3], the trajectory, first step and end of each unit.
        probability: float64 [R], of trajectory and selection, given the prompt.
        forwards: float64 [R], model forwards to sample and train the row.
    """

    rows: TensorDictBase
    units: Tensor
    probability: Tensor
    forwards: Tensor


def true_gradient(trajectories: TensorDictBase, problem: Problem, sampler: Sampler) -> Tensor:
    """Computes grad J, float64 [P], by automatic differentiation of the sum of P(trajectory) * R."""
    return gradient_where(trajectories, problem, sampler).gradient


class Where(NamedTuple):
    """grad J, [P], and the log-probability of each trajectory, [N], at the parameters of the moment."""

    gradient: Tensor
    log_prob: Tensor


def gradient_where(
    trajectories: TensorDictBase, problem: Problem, sampler: Sampler, listed: Tensor | None = None
) -> Where:
    """Computes grad J at the present parameters, which may have moved since the trajectories were listed.

    Args:
        trajectories: all of them, with the probabilities at the parameters at which they were listed.
        problem, sampler: whose they are.
        listed: ``log_prob`` at those parameters, [N]; None: they have not moved.
    """
    scored = StepLogProb()(every_step(trajectories), policy=problem.denoiser, sampler=sampler)
    total = scored[SELECTED_LOG_PROB].sum(-1)  # without the noise of a renoising sampler, which no policy draws
    weight = (total - (total.detach() if listed is None else listed)).exp() * trajectories[PROBABILITY]
    expected = (weight * trajectories[REWARD]).sum() / problem.prompts
    return Where(Parameters(problem.denoiser, sampler).gradient(expected), total.detach())


def select(small: OnProblem, services: ExactServices, trajectories: TensorDictBase) -> Bank:
    """Makes the bank: runs the stages that look at one trajectory, on each with every outcome of the selector.

    Raises:
        NotImplementedError: the selector is random and does not list its outcomes.
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
        if stage.component not in given and stage not in small.declared:
            bank = services.call(stage.component, bank, stage.keys)
    with torch.no_grad():
        small.log_probs.add_fixed(bank)
    units = _number_units(bank)
    probability = bank[PROBABILITY] * torch.cat(shares)
    return Bank(bank, units, probability, _forwards(small, bank))


def _forwards(small: OnProblem, bank: TensorDictBase) -> Tensor:
    """Counts the model forwards to sample, train and correct each row: float64 [R]."""
    sampled, trained = num_valid(bank).double(), (bank[SELECTED_WEIGHT] > 0).sum(-1)
    forwards = sampled + small.estimator.likelihood.forwards(small.problem.length) * trained
    if small.estimator.correction is not None:
        forwards = forwards + (num_valid(bank) if small.estimator.correction.every_step else trained)
    return forwards


def _number_units(bank: TensorDictBase) -> Tensor:
    """Adds ``("selected", "unit")``, the unit of each segment (0 at weight 0); returns the units, int64 [U, 3]."""
    step, used = bank[SELECTED_STEP], bank[SELECTED_WEIGHT] > 0
    end = bank[SELECTED_END] if SELECTED_END in bank.keys(True) else step + 1
    code = torch.stack([bank[TRAJECTORY][:, None].expand_as(step), step, end], dim=-1)[used]
    units, index = torch.unique(code, dim=0, return_inverse=True)
    bank.set(SELECTED_UNIT, torch.zeros_like(step).masked_scatter(used, index))
    return units


def selections(selector: Selector, trajectories: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Lists what the selector can choose, and checks a random one by drawing from it.

    Returns:
        ``Selector.outcomes``, padded to the same K: steps int64 [N, K], weights float64 [N, K], probability [N].

    Raises:
        NotImplementedError: the selector is random and does not list its outcomes, or draws others than it lists.
    """
    outcomes = selector.outcomes(trajectories)
    width = max(step.shape[1] for step, _, _ in outcomes)
    outcomes = [(_wide(step, width), _wide(weight.double(), width), share) for step, weight, share in outcomes]
    if selector.random and not _drawn_as_listed(selector, trajectories, outcomes, width):
        raise NotImplementedError(f"{type(selector).__name__} draws other selections than its outcomes() lists")
    return outcomes


def _wide(values: Tensor, width: int) -> Tensor:
    return pad(values, (0, width - values.shape[1]))


def _drawn_as_listed(
    selector: Selector, trajectories: TensorDictBase, outcomes: list[tuple[Tensor, Tensor, Tensor]], width: int
) -> bool:
    """Returns whether draws are among the outcomes, and about as often as listed (by a chi-squared statistic)."""
    steps, weights, shares = (torch.stack(parts) for parts in zip(*outcomes, strict=True))
    counts = torch.zeros_like(shares)
    for i in range(_DRAWS):
        drawn = selector(trajectories.copy().set(SEED, sample_seeds(len(trajectories), "cpu", i)))
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
    """Runs the likelihood on every unit, and differentiates what it writes."""
    found = [_jacobian(small, trajectories, some) for some in units.split(_UNITS)]
    values = {key: torch.cat([part.values[key] for part in found]) for key in found[0].values}
    rows = {key: torch.cat([part.rows[key] for part in found]) for key in found[0].rows}
    return Jacobian(values, rows, units[:, 1])


def _jacobian(small: OnProblem, trajectories: TensorDictBase, units: Tensor) -> Jacobian:
    """Does so for some units at once; not for all, as each row of the Jacobian costs a backward pass through all."""
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
    """Returns the rows with no other keys than ``keys``, those that they have."""
    have = set(rows.keys(True, True))
    return rows.select(*[key for key in keys if key in have])
