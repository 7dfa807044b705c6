"""What a tuple of trajectories is made of: every listed trajectory with every selection of its steps, and derivatives.

Rows that do not depend on the group are prepared once; a tuple then only indexes them. A loss sees the parameters
through the likelihood's keys alone: a gradient is (d loss / d keys) times the Jacobian of the keys. The likelihood is
computed once for each *unit*: a trajectory, the step a slot starts at, and the step it ends before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn.functional import pad

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.audit.pipeline import ExactServices, after_reward, updater
from dlmrl_kit.audit.policies import SmallPolicy
from dlmrl_kit.core.keys import ITERATION, REWARD, SELECTED_END, SELECTED_LOG_PROB, SELECTED_STEP, SELECTED_WEIGHT
from dlmrl_kit.core.trajectory import every_step, num_valid
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb

_CHUNK = 128
_DRAWS = 100


@dataclass(frozen=True)
class Jacobian:
    """Likelihood keys of every unit: ``values`` [U, ...] each, ``rows`` [U * E, P] each, ``step`` int64 [U]."""

    values: dict[Any, Tensor]
    rows: dict[Any, Tensor]
    step: Tensor


@dataclass(frozen=True)
class Bank:
    """Prepared rows.

    ``rows``: TensorDict [R] with selection, old keys, ``trajectory`` (int64) and ``("selected", "unit")`` (int64 [R,
    K]). ``units``: int64 [U, 3], trajectory, step and end of each. ``probability``: float64 [R], given the prompt.
    ``forwards``: float64 [R], model forwards of sampling and of the update.
    """

    rows: TensorDictBase
    units: Tensor
    probability: Tensor
    forwards: Tensor


def true_gradient(trajectories: TensorDictBase, policy: SmallPolicy, sampler: Any, num_prompts: int) -> Tensor:
    """Gradient [P] of J by automatic differentiation of the sum of P(trajectory) * R."""
    steps = StepLogProb()(every_step(trajectories), policy=policy, sampler=sampler)[SELECTED_LOG_PROB]
    total = steps.sum(-1)  # of what depends on the policy: the draws of a renoising sampler's noise are not in it
    weight = (total - total.detach()).exp() * trajectories["probability"]
    return policy.flat_gradient((weight * trajectories[REWARD]).sum() / num_prompts)


def select(algorithm: Algorithm, services: ExactServices, trajectories: TensorDictBase) -> Bank:
    """Every trajectory with every outcome of the selector, prepared up to the advantage.

    Raises:
        NotImplementedError: a random selector that does not list its outcomes.
    """
    outcomes = selections(algorithm.selector, trajectories)
    index, steps, weights, shares = [], [], [], []
    for step, weight, share in outcomes:
        rows = (share > 0).nonzero().squeeze(-1)
        index.append(rows)
        steps.append(step[rows])
        weights.append(weight[rows])
        shares.append(share[rows])
    source = torch.cat(index)
    bank = trajectories[source].copy()
    bank.set(SELECTED_STEP, torch.cat(steps)).set(SELECTED_WEIGHT, torch.cat(weights))
    if SELECTED_END in algorithm.selector.asked:
        bank.set(SELECTED_END, algorithm.selector.ends(bank, bank[SELECTED_STEP]))
    for component in after_reward(algorithm):
        if component not in (*algorithm.filters, algorithm.selector, algorithm.advantage):
            bank = services.call(component, bank)
    with torch.no_grad():
        bank = updater(algorithm, services.problem).score(bank)
    units = _number_units(bank)
    forwards = num_valid(bank).double() + algorithm.likelihood.copies * (bank[SELECTED_WEIGHT] > 0).sum(-1)
    if algorithm.correction is not None:
        again = num_valid(bank) if algorithm.correction.every_step else (bank[SELECTED_WEIGHT] > 0).sum(-1)
        forwards = forwards + again
    return Bank(bank, units, bank["probability"] * torch.cat(shares), forwards)


def _number_units(bank: TensorDictBase) -> Tensor:
    """Adds ``("selected", "unit")``, 0 in empty slots; returns the units, int64 [U, 3]."""
    step, used = bank[SELECTED_STEP], bank[SELECTED_WEIGHT] > 0
    end = bank[SELECTED_END] if SELECTED_END in bank.keys(True) else step + 1
    code = torch.stack([bank["trajectory"][:, None].expand_as(step), step, end], dim=-1)[used]
    units, index = torch.unique(code, dim=0, return_inverse=True)
    bank.set(("selected", "unit"), torch.zeros_like(step).masked_scatter(used, index))
    return units


def selections(selector: Any, trajectories: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What the selector can choose: ``Selector.outcomes``, all of one width, checked against what it draws.

    Raises:
        NotImplementedError: it is random and does not list its outcomes, or lists others than it draws.
    """
    random, name = "generator" in selector.requires, type(selector).__name__
    if not hasattr(selector, "outcomes"):
        if random:
            raise NotImplementedError(f"{name} is random and does not list its outcomes")
        chosen = selector(trajectories.copy())["selected"]
        return [(chosen["step"], chosen["weight"].double(), torch.ones(len(trajectories), dtype=torch.float64))]
    outcomes = selector.outcomes(trajectories)
    width = max(step.shape[1] for step, _, _ in outcomes)
    outcomes = [(_wide(step, width), _wide(weight.double(), width), share) for step, weight, share in outcomes]
    if random and not _drawn_as_listed(selector, trajectories, outcomes, width):
        raise NotImplementedError(f"{name} draws other selections than its outcomes() lists")
    return outcomes


def _wide(values: Tensor, width: int) -> Tensor:
    return pad(values, (0, width - values.shape[1]))


def _drawn_as_listed(
    selector: Any, trajectories: TensorDictBase, outcomes: list[tuple[Tensor, Tensor, Tensor]], width: int
) -> bool:
    """Whether draws are among the outcomes, about as often as they should be (a chi-squared statistic)."""
    steps, weights, shares = (torch.stack(parts) for parts in zip(*outcomes, strict=True))
    counts = torch.zeros_like(shares)
    for i in range(_DRAWS):
        drawn = selector(trajectories.copy(), generator=torch.Generator().manual_seed(i))["selected"]
        if drawn["step"].shape[1] > width:
            return False
        same = (steps == _wide(drawn["step"], width)) & ((weights - _wide(drawn["weight"], width)).abs() < 1e-9)
        hit = same.all(-1) & (shares > 0)
        if not hit.any(0).all():
            return False
        counts += hit
    expected = _DRAWS * shares
    statistic = float(((counts - expected).square() / expected.clamp(min=1)).sum())
    cells = int((shares > 0).sum())
    return statistic < cells + 8 * math.sqrt(2 * cells)


def jacobian(algorithm: Algorithm, services: ExactServices, trajectories: TensorDictBase, units: Tensor) -> Jacobian:
    """The recipe's likelihood for every unit, with derivatives."""
    policy = services.problem.denoiser
    before = trajectories[units[:, 0]].copy()
    before.set(SELECTED_STEP, units[:, 1:2]).set(SELECTED_END, units[:, 2:])
    before.set(SELECTED_WEIGHT, torch.ones(len(units), 1, dtype=torch.float64))
    before.set(ITERATION, torch.zeros(len(units), dtype=torch.int64))
    known = set(before.keys(True, True))
    algorithm.likelihood.prepare(before, sampler=services.sampler, policy=policy)
    prepared = set(before.keys(True, True))
    after = algorithm.likelihood(before, policy=policy, sampler=services.sampler)
    written = {key: after[key] for key in after.keys(True, True) if key not in known and key not in prepared}
    values = {key: value.detach().squeeze(1) for key, value in written.items()}
    rows = {key: _rows(value, policy) for key, value in written.items() if value.requires_grad}
    return Jacobian(values, rows, units[:, 1])


def _rows(value: Tensor, policy: SmallPolicy) -> Tensor:
    flat, parameters = value.flatten(), policy.parameters_list()
    if len(flat) == 0:  # nothing is ever selected
        return torch.zeros(0, sum(p.numel() for p in parameters), dtype=value.dtype)
    pieces = []
    for part in torch.eye(len(flat), dtype=flat.dtype).split(_CHUNK):
        found = torch.autograd.grad(flat, parameters, part, is_grads_batched=True, retain_graph=True, allow_unused=True)
        blocks = [
            torch.zeros(len(part), p.numel(), dtype=p.dtype) if g is None else g.flatten(1)
            for p, g in zip(parameters, found, strict=True)
        ]
        pieces.append(torch.cat(blocks, dim=1))
    return torch.cat(pieces)


def table(rows: TensorDictBase, keys: set[Any]) -> TensorDict:
    """The rows with only those of ``keys`` that they have."""
    have = set(rows.keys(True, True))
    return rows.select(*[key for key in keys if key in have])
