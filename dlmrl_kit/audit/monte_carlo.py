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

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.audit.pipeline import descended, updater
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.audit.variants import exact_algorithm
from dlmrl_kit.core.keys import SEED
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.corrections.trajectory_importance import TrajectoryImportance
from dlmrl_kit.rollout.services import Services, roll_out


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


def sampled_gradients(algorithm: Algorithm, problem: Problem, group_size: int, batches: int, seed: int) -> Sampled:
    """Draws ``batches`` groups, one of prompt i modulo their number in batch i, and runs every component on each."""
    prompts, own, exact = problem.batch(group_size), [], []
    cached = {} if algorithm.cache is None else {"cache": algorithm.cache, "correction": TrajectoryImportance()}
    reference = exact_algorithm(algorithm.sampler, **cached)
    reference.sampler.ask_for(reference.sampler.optional_keys)  # its trajectories must do for both
    for i in range(batches):
        services = Services(problem.denoiser, reference.sampler, problem.score, seed, i, chunk=10**6)
        q = i % problem.prompts
        asked = prompts[q * group_size : (q + 1) * group_size].copy()
        asked.set(SEED, sample_seeds(group_size, "cpu", seed, i))
        batch = roll_out(reference.plan, asked, services).kept
        exact.append(_gradient(reference, problem, batch.copy()))
        rows = batch.select(*algorithm.sampler.written_keys(), *prompts.keys())
        with torch.no_grad():
            for component in algorithm.plan.rollout[1:]:
                rows = services.call(component, rows) if len(rows) else rows
        own.append(_gradient(algorithm, problem, rows))
    return Sampled(torch.stack(own), torch.stack(exact))


def _gradient(algorithm: Algorithm, problem: Problem, batch: TensorDictBase) -> Tensor:
    policy, prepare = problem.denoiser, updater(algorithm, problem)
    if len(batch) == 0:  # a filter kept nothing
        return torch.zeros_like(policy.flat_gradient(torch.zeros(())))
    with torch.no_grad():
        prepare.prepare(batch)
        if algorithm.plan.live_reference:
            prepare._add_live_reference(batch)
    for estimator in (algorithm.likelihood, *algorithm.values):
        batch = estimator(batch, policy=policy, sampler=algorithm.sampler)
    return -policy.flat_gradient(descended(algorithm.loss(batch)))
