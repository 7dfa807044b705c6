r"""Runs an estimator on sampled batches of a small problem, as in training, for when groups cannot be listed.

The exact components give a second estimate h from the same trajectories, whose expectation is grad J. It is a control
variate: for any beta,

    E g - grad J  =  E[g - beta h] - (1 - beta) grad J

in which most of the noise cancels. If grad J is known, beta is the regression coefficient of g on h, else it is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import GradientEstimator, Swaps
from dlmrl_kit.audit.exact import exact_estimator
from dlmrl_kit.audit.on_problem import DrawnServices, OnProblem, complete, draw_trajectories
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.core.keys import GROUP
from dlmrl_kit.corrections.trajectory_importance import TrajectoryImportance


@dataclass(frozen=True)
class Sampled:
    """The estimates g (``own``) and h (``exact``) of each of n batches of ``groups`` groups, [n, P] each."""

    own: Tensor
    exact: Tensor
    groups: int = 1

    @property
    def variance(self) -> float:
        """Trace of the covariance of g, times the groups of a batch."""
        return self.groups * float(self.own.var(0).sum())

    def bias(self, truth: Tensor | None) -> tuple[Tensor, Tensor]:
        """Estimates E g - grad J.

        Args:
            truth: grad J, [P], if it is known.

        Returns:
            The estimate [P], and the covariance of its error [P, P].
        """
        beta = 1.0
        if truth is not None:
            centred = self.exact - self.exact.mean(0)
            beta = float((centred * self.own).sum() / centred.square().sum().clamp(min=1e-30))
        rest = self.own - beta * self.exact
        known = torch.zeros_like(rest[0]) if truth is None else (1 - beta) * truth
        return rest.mean(0) - known, torch.cov(rest.mT) / len(rest)


def prompts_in_turn(problem: Problem, group_size: int, groups: int, number: int) -> TensorDict:
    """Returns the prompts of batch ``number``, as a sampler reads them: ``groups`` groups, the prompts in turn."""
    group = torch.arange(groups).repeat_interleave(group_size)
    chosen: TensorDict = problem.batch()[(group + number * groups) % problem.prompts]
    return chosen.set(GROUP, group)


class Drawn(NamedTuple):
    """A batch of trajectories, as sampled, and the exact components' estimate h from it, [P]."""

    batch: TensorDictBase
    exact: Tensor


def drawn_batches(
    estimator: GradientEstimator, problem: Problem, group_size: int, batches: int, seed: int, groups: int = 1
) -> list[Drawn]:
    """Samples ``batches`` batches of ``groups`` groups, the prompts in turn, and runs the exact components on each.

    Of the estimator only the sampler and the cache count, so that one list does for all that share these.
    """
    cached = Swaps(cache=estimator.cache, correction=TrajectoryImportance()) if estimator.cache else Swaps()
    reference = OnProblem(exact_estimator(estimator.sampler, cached), problem)
    found = []
    for i in range(batches):
        services = DrawnServices(problem, estimator.sampler, seed, i)
        asked = prompts_in_turn(problem, group_size, groups, i)
        batch = draw_trajectories(
            reference, services, asked, estimator.sampler.optional_keys
        )  # the trajectories must do for every estimator
        found.append(Drawn(batch, _gradient(reference, complete(reference, services, batch.copy()))))
    return found


def sampled_gradients(
    small: OnProblem,
    group_size: int,
    batches: int,
    seed: int,
    groups: int = 1,
    drawn: Sequence[Drawn] | None = None,
) -> Sampled:
    """Runs every component on sampled batches.

    The services of a batch depend on ``seed`` and its number alone.

    Args:
        small: the estimator on its problem.
        group_size, batches, seed, groups: as ``drawn_batches``.
        drawn: what ``drawn_batches`` returns for these; None: it is asked.
    """
    problem, estimator = small.problem, small.estimator
    if drawn is None:
        drawn = drawn_batches(estimator, problem, group_size, batches, seed, groups)
    own = []
    for i, (batch, _) in enumerate(drawn):
        services = DrawnServices(problem, estimator.sampler, seed, i)
        rows = batch.select(*small.plan.sampler.writes, *problem.batch().keys())
        own.append(_gradient(small, complete(small, services, rows)))
    return Sampled(torch.stack(own), torch.stack([exact for _, exact in drawn]), groups)


def _gradient(small: OnProblem, batch: TensorDictBase) -> Tensor:
    if len(batch) == 0:  # a filter kept nothing
        return torch.zeros_like(small.parameters.zero())
    return -small.loss_gradient(small.fixed(batch))
