"""Takes one update of a recipe on a small random model: short completions of one prompt, one optimiser step.

The recipe's own components run. A random model mostly gets equal rewards and so advantages of 0; both are then replaced
by random ones, so that there is a gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from tensordict import TensorDictBase

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.component import rebuilt
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.core.keys import ADVANTAGE, REWARD, SELECTED_ADVANTAGE, SELECTED_WEIGHT, TOKEN_ADVANTAGE
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.skeleton import SMALL, small_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.tasks.base import BaseTask, Example
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update

EXAMPLES = 8
"""The most examples of a split that are generated."""

ROWS = 4
"""The most completions of the small update, unless the sampler makes more of them together."""

LENGTH = 32
"""The length of these completions: as many whole blocks as fit in it, but at least two if the recipe has two."""

SMALL_RANK = 8
"""The largest rank of the small model's adapter."""


class ScaledDown(PolicySource):
    """Loads a small random model of a checkpoint's architecture in place of the checkpoint.

    Args:
        source: the recipe's policy.
        config: the checkpoint's ``config.json``.
    """

    def __init__(self, source: Pretrained, config: dict[str, Any]) -> None:
        self.source = source
        self.config = config
        self.lora_rank = min(source.lora_rank, SMALL_RANK)
        self.gradient_checkpointing = source.gradient_checkpointing
        self.activation_gib = source.activation_gib

    @property
    def canvas_length(self) -> int | None:
        """The positions of a canvas of the small model; None if its architecture has no canvases."""
        return SMALL["canvas_length"] if "canvas_length" in self.config else None

    def load(self) -> TransformersPolicy:
        """Makes the small model, with an adapter and gradient checkpointing if the recipe has them."""
        policy = small_policy(self.config, architecture_options(self.source))
        self.source.prepare(policy, self.lora_rank)
        return policy


def architecture_options(source: Pretrained) -> LoadOptions:
    """Returns the settings of a recipe's policy that its architecture depends on."""
    return LoadOptions(block_size=source.block_size, chat_template=source.chat_template)


class FewExamples(BaseTask):
    """A task with only the first examples of each split, so that not all of them are generated.

    Args:
        task: the recipe's task.
    """

    def __init__(self, task: BaseTask) -> None:
        self.task = task
        self.main_thread = task.main_thread

    def size(self, split: str) -> int:
        """Returns the number of examples in a split, at most ``EXAMPLES``."""
        return min(self.task.size(split), EXAMPLES)

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Returns an example of the recipe's task."""
        return self.task.example(split, index)

    def place(self, split: str, index: int) -> str:
        """Returns where the recipe's task has an example."""
        return self.task.place(split, index)

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Scores a completion as the recipe's task does."""
        return self.task.score(completion, example)

    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores completions as the recipe's task does."""
        return self.task.score_many(completions, examples)


def small_update(algorithm: Algorithm, source: PolicySource) -> str:
    """Rolls out and takes one optimiser step with a recipe's components; says in words what happened.

    Args:
        algorithm: the recipe.
        source: loads the small policy.

    Raises:
        TrainingError: old and new log-probabilities disagree, no weight changes, or a number is not finite.
    """
    began = time.perf_counter()
    small = small_algorithm(algorithm, source)
    started = start_training(small)
    update = Update(small, *started)
    rollout = update.roll_out(0)
    update.check(rollout, 0)
    if len(rollout.kept) == 0:
        return "rolled out, and the recipe's filters kept nothing of it: a random model has no success"
    credit(rollout.kept)
    before = [parameter.detach().clone() for parameter in update.parameters]
    metrics = update.prepare(rollout) | update.learn(rollout.kept, 0)
    changed = sum(not torch.equal(old, new) for old, new in zip(before, update.parameters, strict=True))
    if metrics["skipped"] or not all(math.isfinite(value) for value in metrics.values()) or not changed:
        raise TrainingError(f"the update of the small model failed: {metrics}, {changed} tensors changed")
    return (
        f"worked: a random model of {started.policy.num_parameters:,} parameters, {small.trainer.group_size} "
        f"completions, loss {metrics['loss']:.3g}, old and new log-probabilities agree to {update.difference:.1e}, "
        f"{changed} of {len(before)} tensors changed, {time.perf_counter() - began:.1f} s"
    )


def small_algorithm(algorithm: Algorithm, source: PolicySource) -> Algorithm:
    """Returns the algorithm with another policy, few examples, short completions and one prompt per update."""
    fillings = algorithm.fillings
    fillings["sampler"] = _short_sampler(algorithm.sampler, source)
    return Algorithm(
        task=FewExamples(algorithm.task.sketch()), policy=source, trainer=_short_trainer(algorithm), **fillings
    )


def _short_trainer(algorithm: Algorithm) -> Trainer:
    group = algorithm.trainer.group_size
    return rebuilt(
        algorithm.trainer,
        updates=1,
        prompts_per_update=1,
        group_size=group if algorithm.sampler.group_size else min(group, ROWS),
        minibatches=1,
        precision="float32",
        compile=None,
        device="cpu",
    )


def _short_sampler(sampler: Sampler, source: PolicySource) -> Sampler:
    """Returns the sampler with short completions, and with blocks as short as the canvases of the small model."""
    canvas = source.canvas_length if isinstance(source, ScaledDown) else None
    whole = sampler.block_length >= sampler.completion_length
    block = canvas or (min(sampler.completion_length, LENGTH) if whole else sampler.block_length)
    blocks = -(-sampler.completion_length // sampler.block_length)
    length = min(blocks, max(LENGTH // block, 2)) * block
    if not whole and canvas is None:
        length = min(length, sampler.completion_length)
    return rebuilt(sampler, completion_length=length, block_length=block)


def credit(trajectory: TensorDictBase) -> None:
    """Replaces advantages by random numbers if all are 0, and rewards, which some losses read, if all are equal."""
    generator = torch.Generator().manual_seed(0)
    for key in (SELECTED_ADVANTAGE, ADVANTAGE, TOKEN_ADVANTAGE):
        found = trajectory.get(key, None)
        if found is not None and not bool((found != 0).any()):
            noise = torch.randn(found.shape, generator=generator).to(found)
            if key == SELECTED_ADVANTAGE:
                noise = noise * (trajectory[SELECTED_WEIGHT] > 0)
            trajectory.set(key, noise)
    reward = trajectory[REWARD]
    if bool((reward == reward[0]).all()):
        trajectory.set(REWARD, torch.rand(reward.shape, generator=generator).to(reward))
