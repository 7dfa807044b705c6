r"""Audits the optimiser steps after the first one on a rollout, in which the policy is no longer the one that sampled.

Step k has the gradient g_k at the parameters theta_k, which the steps before have moved. The bias that it adds is

    E[ g_k(theta_k) - g_k(theta_0) ] - s E[ grad J(theta_k) - grad J(theta_0) ]

with s the scale of the first gradient: 0 if a later step were as good as a first one. Rollouts are sampled, split into
minibatches and learned from as in training, by AdamW with the trainer's settings, from the same parameters each time;
grad J is exact at every step. Each difference is small and has little noise, so few rollouts do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.audit.bank import gradient_where
from dlmrl_kit.audit.measure import ZERO, Ground, Measured, interval
from dlmrl_kit.audit.on_problem import DrawnServices, OnProblem, complete, draw_trajectories
from dlmrl_kit.audit.sampled import prompts_in_turn
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.optimiser import build_optimiser
from dlmrl_kit.training.update import minibatches

MOST_ROLLOUTS = 60
"""Rollouts that are sampled, unless fewer are asked for."""


@dataclass(frozen=True)
class LaterStep:
    """The bias that one optimiser step adds to that of the first gradient, on one problem.

    Attributes:
        step: its number on the rollout; the first is 1.
        added: norm of the bias that it adds, over ||E g|| of the first gradient.
        interval: its 95% confidence interval.
    """

    step: int
    added: float
    interval: tuple[float, float]


def audit_later_steps(small: OnProblem, ground: Ground, measured: Measured, trainer: Trainer) -> list[LaterStep]:
    """Audits all optimiser steps but the first.

    Args:
        small: the estimator on its problem, without regularisers.
        ground: of the problem, prepared.
        measured: the first gradient.
        trainer: says how many steps a rollout has, and how large they are.

    Returns:
        A finding for each step; empty where trajectories cannot be listed or the first gradient is 0 on average.
    """
    if ground.trajectories is None or ground.truth is None or measured.scale is None or measured.mean_norm < ZERO:
        return []
    steps = trainer.minibatches * trainer.inner_iterations
    own = [[] for _ in range(steps)]  # type: list[list[Tensor]]
    for i in range(min(ground.batches, MOST_ROLLOUTS)):
        found = dict(enumerate(_differences(small, ground, measured.scale, trainer, i)))
        for step, differences in enumerate(own):
            differences.append(found.get(step, torch.zeros_like(ground.truth)))
    return [_later_step(step, torch.stack(own[step - 1]), measured.mean_norm) for step in range(2, steps + 1)]


def _later_step(step: int, differences: Tensor, unit: float) -> LaterStep:
    noise = torch.cov(differences.mT) / len(differences)
    low, middle, high = (end / unit for end in interval(differences.mean(0), noise))
    return LaterStep(step, middle, (low, high))


def _differences(small: OnProblem, ground: Ground, scale: float, trainer: Trainer, number: int) -> Iterator[Tensor]:
    """Yields the difference of every step on one rollout, [P] each, and puts the parameters back."""
    assert ground.trajectories is not None
    rollout = _rollout(small, ground, trainer, number)
    if len(rollout) == 0:  # filters kept nothing
        return
    parameters = small.parameters.all
    start = [p.detach().clone() for p in parameters]
    optimiser, _ = build_optimiser(
        parameters,
        learning_rate=trainer.learning_rate,
        betas=trainer.betas,
        weight_decay=trainer.weight_decay,
        schedule="constant",
        warmup_steps=0,
        total_steps=1,
    )
    parts = list(minibatches(rollout, trainer, ground.seed, number, small.estimator.loss.needs_groups))
    first = [-small.loss_gradient(part.copy()) for part in parts]
    truth = gradient_where(ground.trajectories, small.problem, small.estimator.sampler)
    reference = truth.log_prob.detach()
    try:
        for part, at_start in zip(parts, first, strict=True):
            gradient = -small.loss_gradient(part.copy())
            now = gradient_where(ground.trajectories, small.problem, small.estimator.sampler, reference)
            yield gradient - at_start - scale * (now.gradient - truth.gradient)
            _set_gradients(parameters, -gradient)
            torch.nn.utils.clip_grad_norm_(parameters, trainer.max_grad_norm)
            optimiser.step()
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, start, strict=True):
                p.copy_(value)
                p.grad = None


def _rollout(small: OnProblem, ground: Ground, trainer: Trainer, number: int) -> TensorDictBase:
    services = DrawnServices(small.problem, small.estimator.sampler, ground.seed, number)
    asked = prompts_in_turn(small.problem, ground.group_size, ground.groups, number)
    rollout = complete(small, services, draw_trajectories(small, services, asked, small.plan.sampler.keys))
    if len(rollout):
        with torch.no_grad():
            small.log_probs.add_fixed(rollout, trainer.inner_iterations)
        rollout = small.weighed(rollout)
    return rollout


def _set_gradients(parameters: list[torch.nn.Parameter], gradient: Tensor) -> None:
    for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.reshape(p.shape).clone()


def summed_up(found: list[list[LaterStep]]) -> list[LaterStep]:
    """Averages the findings on several problems; intervals are those of the problem where a step adds most."""
    steps: dict[int, list[LaterStep]] = {}
    for later in found:
        for one in later:
            steps.setdefault(one.step, []).append(one)
    return [
        LaterStep(step, math.fsum(one.added for one in same) / len(same), max(one.interval for one in same))
        for step, same in steps.items()
    ]
