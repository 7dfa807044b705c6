"""Expectation and variance of a recipe's gradient estimate g, summed over all tuples of G trajectories of a prompt.

    E[g] = sum over batches of their probability * g(batch),    Var = E ||g||^2 - ||E g||^2

A batch has several groups, each a tuple. ``audit.batches`` computes its moments from the law of one group. For that,
many tuples go through the advantage and the loss as the groups of one large batch. On a few tuples this is compared
with running the whole recipe on each alone; if they differ, every tuple is run alone. A few batches are compared with
what their groups make of them; if they differ, because a component looks across groups, every batch is run alone.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.audit.bank import Bank, Jacobian, jacobian, select, table
from dlmrl_kit.audit.batches import GroupLaw, Part, batch_moments, compositions
from dlmrl_kit.audit.on_problem import ExactServices, OnProblem
from dlmrl_kit.core.keys import (
    EXAMPLE,
    GROUP,
    REWARD,
    SEED,
    SELECTED_CORRECTION,
    SELECTED_UNIT,
    SELECTED_WEIGHT,
    STEP_VALID,
    TRAJECTORY,
    Key,
)
from dlmrl_kit.training.gradient import loss_of

MAX_TUPLES = 1_000_000
"""The most tuples that are listed."""
MAX_SINGLE_TUPLES = 3_000
"""The most tuples that are run one at a time."""
_CHUNK = 4096  # tuples that are run together
_CHECKED = 4  # tuples that are run alone to check that running them together is the same


class TooLarge(Exception):
    """There are too many tuples to list; the message says how many."""


@dataclass
class Moments:
    """Moments of the gradient estimate g of a batch, which is minus the gradient of the loss.

    Attributes:
        mean: E g, [P].
        second: E ||g||^2.
        step_mean, step_second: [T, P] and [T], the same of the part of g that comes from segments that start at each
            step; None if tuples were run one at a time.
        forwards: expected model forwards of a group.
        tuples: how many were listed.
        vectorised: whether they were run together.
    """

    mean: Tensor
    second: float
    step_mean: Tensor | None
    step_second: Tensor | None
    forwards: float
    tuples: int
    vectorised: bool = True


def moments(
    small: OnProblem, services: ExactServices, trajectories: TensorDictBase, group_size: int, groups: int = 1
) -> Moments:
    """Computes the exact moments of a gradient estimate.

    Args:
        small: the estimator on its problem, without regularisers.
        services: of the problem.
        trajectories: all of them, with ``probability``, ``reward`` and ``trajectory``.
        group_size: G.
        groups: of a batch.

    Raises:
        NotImplementedError: the selector is random and does not list its outcomes, or another component draws, or
            the likelihood reads the advantage.
        TooLarge: there are too many tuples, or too many batches where a component looks across groups.
    """
    estimator = small.estimator
    if estimator.likelihood.random_masks:
        raise NotImplementedError(f"{type(estimator.likelihood).__name__} masks at random")
    if set(estimator.likelihood.in_keys) & set(small.advantage.writes):
        raise NotImplementedError(f"{type(estimator.likelihood).__name__} reads the advantage")
    for stage in small.declared:
        for reader in (estimator.likelihood, estimator.selector):
            if set(reader.in_keys) & set(stage.writes):
                raise NotImplementedError(f"{type(reader).__name__} reads what {stage.name} makes of whole groups")
    drawing = [stage.component for stage in small.after_reward if SEED in stage.component.in_keys]
    if others := [component for component in drawing if component is not estimator.selector]:
        raise NotImplementedError(f"{type(others[0]).__name__} draws")
    bank = select(small, services, trajectories)
    num_prompts = small.problem.prompts
    prompts = [(bank.rows[EXAMPLE] == q).nonzero().squeeze(-1) for q in range(num_prompts)]
    tuples = sum(len(rows) ** group_size for rows in prompts)
    if tuples > MAX_TUPLES:
        raise TooLarge(f"{tuples} groups of {group_size}")
    sample = _some(prompts, group_size)
    singles = [_single(small, services, bank, index) for index in sample]
    if groups > 1 and _looks_across(small, services, bank, sample, singles):
        return _batch_by_batch(small, services, bank, prompts, group_size, groups)
    alone = [_average(*single) for single in singles]
    if not small.declared and not set(estimator.selector.in_keys) & set(estimator.advantage.out_keys):
        together = _Together(small, services, trajectories, bank, group_size)
        if _close(together.gradients(torch.stack(sample)), torch.stack(alone)):
            return together.batch_moments(prompts, tuples, groups)
    if tuples > MAX_SINGLE_TUPLES:
        raise TooLarge(f"{tuples} groups of {group_size} that must be run one at a time")
    return _one_by_one(small, services, bank, prompts, group_size, groups)


def product_index(rows: Tensor, group_size: int) -> Tensor:
    """Lists all ordered tuples of G ``rows``: int64 [len(rows) ** G, G]."""
    if group_size == 1:
        return rows[:, None]
    return torch.cartesian_prod(*[rows] * group_size)


def _some(prompts: list[Tensor], group_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        rows[torch.randint(len(rows), (group_size,), generator=generator)]
        for rows in [prompts[i % len(prompts)] for i in range(_CHECKED)]
    ]


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-9 * max(1.0, float(b.norm())))


def _single(small: OnProblem, services: ExactServices, bank: Bank, index: Tensor) -> tuple[Tensor, float]:
    """Runs every component on one batch of groups, given as rows of the bank: int64 [G], or [M, G].

    A random selector is not run: the selection in the bank stands for its draw.

    Returns:
        Minus the gradient of the loss's numerator, [P], and its denominator.
    """
    selector, size = small.estimator.selector, index.shape[-1]
    rows = bank.rows[index.flatten()]
    given = selector.random
    written = {key for s in small.plan.rollout if given and s.component is selector for key in s.writes}
    keep = [key for key in rows.keys(True, True) if key in written or not _is_selected(key)]
    batch = rows.select(*keep).set(GROUP, torch.arange(len(rows)) // size)
    for stage in small.after_reward:
        if len(batch) and not (given and stage.component is selector):
            batch = services.call(stage.component, batch, stage.keys)
    if len(batch) == 0:  # a filter kept nothing
        return torch.zeros_like(small.parameters.zero()), 0.0
    fixed = small.fixed(batch)
    count = float(small.estimator.loss.count(fixed))
    return -small.loss_gradient(fixed) * count, count


def _average(total: Tensor, count: float) -> Tensor:
    """Divides a numerator by its denominator; 0 where there is nothing to count."""
    return total / count if count else total


def _is_selected(key: Key) -> bool:
    """Returns whether a key belongs to a selection, which ``_single`` makes again."""
    return isinstance(key, tuple) and key[0] == "selected"


def _looks_across(
    small: OnProblem, services: ExactServices, bank: Bank, groups: list[Tensor], alone: list[tuple[Tensor, float]]
) -> bool:
    """Returns whether a batch of ``groups`` has another gradient than the quotient of the sums of each ``alone``."""
    for some in ([0, 1], [2, 3], list(range(len(groups)))):
        total, count = _single(small, services, bank, torch.stack([groups[i] for i in some]))
        expected = torch.stack([alone[i][0] for i in some]).sum(0), sum(alone[i][1] for i in some)
        if not _close(_average(total, count), _average(*expected)):
            return True
    return False


def _batch_by_batch(
    small: OnProblem, services: ExactServices, bank: Bank, prompts: list[Tensor], group_size: int, groups: int
) -> Moments:
    """Sums over every batch of ``groups`` tuples, each run alone."""
    ways = compositions(len(prompts), groups)
    tuples = [product_index(rows, group_size) for rows in prompts]
    batches = sum(math.prod(len(own) ** n for own, n in zip(tuples, number, strict=True)) for number in ways)
    if batches > MAX_SINGLE_TUPLES:
        raise TooLarge(f"a component looks across groups, and there are {batches:.3g} batches of {groups}")
    mean, second = torch.zeros(()), 0.0
    for number in ways:
        slots = [own for own, n in zip(tuples, number, strict=True) for _ in range(n)]
        for chosen in itertools.product(*slots):
            index = torch.stack(chosen)
            share = float(bank.probability[index].prod()) / len(ways)
            gradient = _average(*_single(small, services, bank, index))
            mean, second = mean + share * gradient, second + share * float(gradient @ gradient)
    forwards = group_size * float((bank.probability * bank.forwards).sum()) / len(prompts)
    return Moments(mean, second, None, None, forwards, batches, vectorised=False)


def _one_by_one(
    small: OnProblem, services: ExactServices, bank: Bank, prompts: list[Tensor], group_size: int, groups: int
) -> Moments:
    laws, tuples = [], 0
    for rows in prompts:
        law = GroupLaw([Part(torch.arange(small.parameters.size), None)])
        for index in product_index(rows, group_size):
            total, count = _single(small, services, bank, index)
            law.add(bank.probability[index].prod()[None], total[None], torch.tensor([count], dtype=torch.float64))
            tuples += 1
        laws.append(law)
    mean, second = batch_moments(laws, groups)
    forwards = group_size * float((bank.probability * bank.forwards).sum()) / len(prompts)
    return Moments(mean, float(second[0]), None, None, forwards, tuples, vectorised=False)


class _Together:
    """Runs many tuples as the groups of one batch.

    A gradient is kept as its coefficients: d loss / d (each number that the likelihood writes for each unit). Times
    ``matrix``, the Jacobian of these numbers, that is the gradient; ``gram`` gives its norm without computing it.
    """

    def __init__(
        self,
        small: OnProblem,
        services: ExactServices,
        trajectories: TensorDictBase,
        bank: Bank,
        group_size: int,
    ) -> None:
        self.small, self.services, self.bank, self.group_size = small, services, bank, group_size
        self.derivative: Jacobian = jacobian(small, trajectories, bank.units)
        self.num_steps = trajectories[STEP_VALID].shape[1]
        loss, advantage = small.estimator.loss, small.advantage
        needed = {*loss.in_keys, *advantage.reads, TRAJECTORY, REWARD, SELECTED_CORRECTION}
        needed |= {key for part in small.estimator.filters for key in part.in_keys}
        self.rows = table(bank.rows, needed | {STEP_VALID, SELECTED_UNIT, SELECTED_WEIGHT})
        full = small.weighed(self._with_likelihood(self.rows.copy()))
        self.counts = torch.tensor([float(loss.count(full[i : i + 1])) for i in range(len(full))]).double()
        self.keys = [key for key in self.derivative.rows if key in set(loss.in_keys)]
        none = torch.zeros(0, small.parameters.size, dtype=torch.float64)
        self.matrix = torch.cat([none, *(self.derivative.rows[key] for key in self.keys)])
        self.gram = self.matrix @ self.matrix.mT

    def _with_likelihood(self, rows: TensorDictBase) -> TensorDictBase:
        """Adds the likelihood's keys of the units of each row, 0 where the weight is."""
        unit = rows[SELECTED_UNIT]
        used = rows[SELECTED_WEIGHT] > 0
        have = set(rows.keys(True, True))
        for key, value in self.derivative.values.items():
            if key in have:
                continue
            picked = value[unit]
            rows.set(key, torch.where(used.reshape(*used.shape, *[1] * (picked.dim() - 2)), picked, 0.0))
        return rows

    def coefficients(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Differentiates the numerator of every tuple's loss by the likelihood's keys.

        Args:
            index: int64 [M, G], tuples of rows of the bank.

        Returns:
            Minus the derivatives, [M, columns], one column for each number in the bank; the denominators, [M], 0 where
            filters keep nothing; and model forwards, [M].
        """
        count, group_size = index.shape
        batch = self.rows[index.flatten()].copy()
        batch.set(GROUP, torch.arange(count).repeat_interleave(group_size))
        kept = torch.ones(count * group_size, dtype=torch.bool)
        for component in self.small.estimator.filters:
            kept &= component.keep(batch)
        advantage = self.small.advantage
        batch = self.services.call(advantage.component, batch, advantage.keys)
        restarts = self.services.restarts
        forwards = self.bank.forwards[index].sum(-1)
        if restarts is not None:
            forwards = forwards + restarts.reshape(count, group_size).sum(-1)
        batch = self.small.weighed(self._with_likelihood(batch))
        leaves = {key: batch[key].requires_grad_() for key in self.keys}
        for key, leaf in leaves.items():
            batch.set(key, leaf)
        loss = self.small.estimator.loss
        total = loss_of(loss(batch)) * float(loss.count(batch))
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True) if leaves else ()
        own = (self.counts[index] * kept.reshape(index.shape)).sum(-1)
        blocks = [self._block(key, found_key, batch, count) for key, found_key in zip(leaves, found, strict=True)]
        numerator = -torch.cat([torch.zeros(count, 0, dtype=torch.float64), *blocks], dim=1)
        return numerator.masked_fill((own == 0)[:, None], 0.0), own, forwards

    def _block(self, key: Key, gradient: Tensor | None, batch: TensorDictBase, count: int) -> Tensor:
        value = self.derivative.values[key]
        entries = math.prod(value.shape[1:])
        out = torch.zeros(count, value.numel(), dtype=torch.float64)
        if gradient is None:
            return out
        column = batch[SELECTED_UNIT][..., None] * entries
        column = (column + torch.arange(entries)).reshape(count, -1)
        return out.scatter_add(1, column, gradient.reshape(count, -1))

    def gradients(self, index: Tensor) -> Tensor:
        """Computes minus the gradient of every tuple of index int64 [M, G], as a batch of its own: [M, P]."""
        numerator, count, _ = self.coefficients(index)
        return numerator / count.masked_fill(count == 0, 1)[:, None] @ self.matrix

    def batch_moments(self, prompts: list[Tensor], tuples: int, groups: int) -> Moments:
        """Computes the moments over batches of all tuples of all prompts, given as rows of the bank for each prompt."""
        step_of = torch.cat([torch.zeros(0), *(self._step_of(key) for key in self.keys)])
        by_step = [(step_of == t).nonzero().squeeze(-1) for t in range(self.num_steps)]
        parts = [Part(own, self.gram[own][:, own]) for own in (torch.arange(len(self.matrix)), *by_step)]
        laws, forwards = [], 0.0
        for rows in prompts:
            law = GroupLaw(parts)
            for index in product_index(rows, self.group_size).split(_CHUNK):
                share = self.bank.probability[index].prod(-1)
                numerator, count, cost = self.coefficients(index)
                law.add(share, numerator, count)
                forwards += float(share @ cost) / len(prompts)
            laws.append(law)
        mean, second = batch_moments(laws, groups)
        step_mean = torch.stack([mean[own] @ self.matrix[own] for own in by_step])
        return Moments(mean @ self.matrix, float(second[0]), step_mean, second[1:], forwards, tuples)

    def _step_of(self, key: Key) -> Tensor:
        return self.derivative.step.repeat_interleave(math.prod(self.derivative.values[key].shape[1:]))
