"""Parts of an algorithm by hand: its trajectories, and its audit."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase

from dlmrl_kit.algorithm.algorithm import Algorithm, GradientEstimator
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.audit import AuditReport, audit_algorithm, audit_recipe
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.generation import as_list, prompt_rows
from dlmrl_kit.core.keys import GROUP, PROGRESS
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.rollout.services import UpdateServices, prompt_batch
from dlmrl_kit.training.start import start_policy
from dlmrl_kit.training.update import run_stages


def rollout(
    algorithm: Algorithm,
    prompts: Prompt | Sequence[Prompt] | None = None,
    *,
    policy: Policy | None = None,
    split: str = "train",
    indices: Sequence[int] | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> TensorDictBase:
    """Samples trajectories as an update does: sampler, filters, selector, rewards and advantages, in the plan's order.

    Args:
        algorithm: its components run; those that train modules get them here, for ``policy``.
        prompts: texts or conversations, which nothing rewards: what needs no reward runs. None: examples of the task.
        policy: the denoiser; None: the one that training starts from, loaded anew.
        split, indices: the examples, if there are no ``prompts``; None: the first ones, as many as in an update.
        samples: of each prompt; None: as many as in training.
        seed: of the noise; the same seed gives the same trajectories.

    Returns:
        The trajectory ([B]; its keys are on the page docs/trajectory.md) of the samples that the filters keep.

    Raises:
        RecipeError: both ``prompts`` and ``indices``, or none of them; no such split or example; components that do
            not fit together; or a prompt that the policy cannot read.
    """
    if prompts is not None and indices is not None:
        raise RecipeError("rollout takes prompts, or indices of the task's examples, not both")
    if samples is not None and samples < 1:
        raise RecipeError(f"samples must be at least 1, got {samples}")
    if not isinstance(policy, Policy | None):
        raise RecipeError(f"policy takes a loaded one (dlmrl_kit.load_policy), not a {type(policy).__name__}")
    plan, trainer, task, sampler = make_plan(algorithm), algorithm.trainer, algorithm.task, algorithm.sampler
    if policy is None:
        policy, _, _ = start_policy(algorithm.policy, trainer, trainer.optimiser_steps, algorithm.components)
    copies = sampler.group_size or samples or trainer.group_size
    stages = plan.before_rewards
    if prompts is not None:
        texts = as_list(prompts)
        if not texts:
            raise RecipeError("rollout got an empty list of prompts")
        batch = prompt_rows(policy, texts, sampler.completion_length, seed, copies)
        batch.set(GROUP, torch.arange(len(texts), device=policy.device).repeat_interleave(copies))
    else:
        stages = (*plan.before_rewards, *plan.with_rewards)
        batch = prompt_batch(
            task, split, _examples(algorithm, split, indices), policy, copies, sampler.completion_length, seed
        )
    batch.set(PROGRESS, torch.zeros(len(batch), device=policy.device))
    services = UpdateServices(policy, sampler, Scorer(task, split, policy), trainer.rollout_batch_size or len(batch))
    with torch.no_grad():
        given = {**services.given_to(sampler), "keys": plan.sampler.keys, "cache": algorithm.cache}
        trajectory = sampler(batch, **given)
        return run_stages(stages, trajectory, services)[1]


def _examples(algorithm: Algorithm, split: str, indices: Sequence[int] | None) -> list[int]:
    task = algorithm.task
    if split not in task.SPLITS:
        raise RecipeError(f"unknown split {split!r}; available: {', '.join(task.SPLITS)}")
    size = task.size(split)
    chosen = list(range(min(size, algorithm.trainer.prompts_per_update))) if indices is None else list(indices)
    wrong = [index for index in chosen if not 0 <= index < size]
    if wrong or not chosen:
        what = f"example {wrong[0]} is not in the {split} split" if wrong else f"no examples of the {split} split"
        raise RecipeError(f"{what}, which has {size}")
    return chosen


def audit(
    what: GradientEstimator | str | os.PathLike[str],
    *,
    problems: int = 4,
    seed: int = 0,
    group_size: int = 2,
    attribution: bool = True,
) -> AuditReport:
    """Measures bias, scale and variance of the gradient of an algorithm or a recipe, exactly, as ``dlmrl audit`` does.

    Args:
        what: an algorithm, or the name or path of a recipe.
        problems: how many small random problems stand in for task and policy.
        seed: of the problems, and of sampling where trajectories cannot be listed.
        group_size: G.
        attribution: whether to measure the causes of a bias one by one, too.

    Returns:
        The report, whose ``verdict`` is one line.

    Raises:
        UserError: as ``audit.audit_algorithm``.
    """
    if not isinstance(what, GradientEstimator | str | os.PathLike):
        raise RecipeError(f"audit takes an algorithm, or the name or path of a recipe, not a {type(what).__name__}")
    if isinstance(what, GradientEstimator):
        return audit_algorithm(what, problems=problems, seed=seed, group_size=group_size, attribution=attribution)
    return audit_recipe(os.fspath(what), problems=problems, seed=seed, group_size=group_size, attribution=attribution)
