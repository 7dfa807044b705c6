r"""Where groups cannot be listed: the recipe run as in training, on sampled groups of the small problem.

Each batch also gives h, the estimate of the exact components from the same trajectories, whose expectation is grad J:

    E g - grad J  =  E[g - beta h] - (1 - beta) grad J

for any beta. Where grad J is known beta is the regression of g on h, else 1: most of the noise of the rewards cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit.exact import exact_estimator
from dlmrl_kit.audit.on_problem import DrawnServices, OnProblem, complete, draw_trajectories
from dlmrl_kit.corrections.trajectory_importance import TrajectoryImportance


@dataclass(frozen=True)
class Sampled:
    """``own``, ``exact``: g and h of every batch, [n, P] each."""

    own: Tensor
    exact: Tensor

    @property
    def variance(self) -> float:
        """Trace of the covariance of g."""
        return float(self.own.var(0).sum())

    def bias(self, truth: Tensor | None) -> tuple[Tensor, Tensor]:
        """Estimate of E g - grad J, [P], and the covariance of its error, [P, P]; ``truth``: grad J if known."""
        beta = 1.0
        if truth is not None:
            centred = self.exact - self.exact.mean(0)
            beta = float((centred * self.own).sum() / centred.square().sum().clamp(min=1e-30))
        rest = self.own - beta * self.exact
        known = torch.zeros_like(rest[0]) if truth is None else (1 - beta) * truth
        return rest.mean(0) - known, torch.cov(rest.mT) / len(rest)


def sampled_gradients(small: OnProblem, group_size: int, batches: int, seed: int) -> Sampled:
    """Draws ``batches`` groups, one of prompt i modulo their number in batch i, and runs every component on each."""
    problem, estimator = small.problem, small.estimator
    prompts, own, exact = problem.batch(group_size), [], []
    cached = Swaps(cache=estimator.cache, correction=TrajectoryImportance()) if estimator.cache else Swaps()
    reference = OnProblem(exact_estimator(estimator.sampler, cached), problem)
    for i in range(batches):
        services = DrawnServices(problem, estimator.sampler, seed, i)
        q = i % problem.prompts
        asked = prompts[q * group_size : (q + 1) * group_size]
        batch = draw_trajectories(
            reference, services, asked, estimator.sampler.optional_keys
        )  # the trajectories must do for both
        exact.append(_gradient(reference, complete(reference, services, batch.copy())))
        rows = batch.select(*small.plan.sampler.writes, *prompts.keys())
        own.append(_gradient(small, complete(small, services, rows)))
    return Sampled(torch.stack(own), torch.stack(exact))


def _gradient(small: OnProblem, batch: TensorDictBase) -> Tensor:
    if len(batch) == 0:  # a filter kept nothing
        return torch.zeros_like(small.parameters.zero())
    return -small.loss_gradient(small.fixed(batch))
