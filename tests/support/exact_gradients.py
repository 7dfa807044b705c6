"""What exact samplers are held to: the gradient of the expected reward, and an audit that finds no bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit.auditing import audit_algorithm
from dlmrl_kit.audit.bank import true_gradient
from dlmrl_kit.audit.exact import exact_estimator
from dlmrl_kit.audit.policies import Parameters
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.samplers.base import Sampler

Listing = Callable[[], tuple[Sampler, Any]]
"""Lists all trajectories of a problem as it is now, with their probabilities."""


def check_gradient(problem: Problem, listing: Listing) -> Any:
    """Compares the exact gradient with differences of the expected reward, which know nothing of log-probabilities.

    Returns the trajectories that were listed.
    """

    def value() -> float:
        _, listed = listing()
        rewards = problem.score(listed["completion_ids"], listed["example"])
        return float((listed["probability"] * rewards).sum())

    sampler, listed = listing()
    listed.set("reward", problem.score(listed["completion_ids"], listed["example"]))
    gradient = true_gradient(listed, problem, sampler)
    flat, size = [], 1e-5
    with torch.no_grad():
        for parameter in Parameters(problem.denoiser, sampler).all:
            for i in range(parameter.numel()):
                parameter.view(-1)[i] += size
                up = value()
                parameter.view(-1)[i] -= 2 * size
                flat.append((up - value()) / (2 * size))
                parameter.view(-1)[i] += size
    assert gradient.norm() > 1e-3
    torch.testing.assert_close(gradient, torch.tensor(flat, dtype=torch.float64), atol=1e-8, rtol=1e-5)
    return listed


def check_audit(sampler: Sampler) -> None:
    """Audits a sampler with the log-probability of steps, and with that of their tokens, which is the same for it."""
    estimator = exact_estimator(sampler)
    problems = [Problem(vocab=2, length=3, seed=5), Problem(vocab=2, length=2, policy="network", seed=6, spread=4.0)]
    report = audit_algorithm(estimator, problems=problems, attribution=False)
    assert report.exact
    assert report.unbiased
    assert all(measured.gradient_norm > 1e-3 for measured in report.measured)
    tokens = exact_estimator(estimator.sampler, Swaps(likelihood=StepTokenLogProb()))
    assert audit_algorithm(tokens, problems=problems[:1], attribution=False).unbiased
