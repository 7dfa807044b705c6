"""Memory of a process that holds a part of the weights, and what it says of how to put them together for rollouts."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.core.component import rebuilt
from dlmrl_kit.core.keys import PROMPT_MASK
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.policies.sharding import Parts
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.services import prompt_batch
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.estimate import Memory, memory
from dlmrl_kit.training.exchange import own_samples, units

FREE = 0.1
"""Share of a card's memory that a choice must leave free, for the allocator, kernels and what estimates miss."""
EXAMPLES = 8
"""How many prompts are looked at for their length."""


def sharded(whole: Memory, plan: Plan, policy: TransformersPolicy, world: int, parts: Parts) -> Memory:
    """Returns the memory of one of the processes that have a part of the weights each.

    Args:
        whole: of a process that holds all weights.
        plan: of the algorithm.
        policy: its parameters may be on the ``meta`` device; not sharded yet.
        world: how many processes there are.
        parts: how they keep weights and put them together.
    """
    copied = plan.needs_reference and policy.adapter is None
    cut = units(policy, world, parts.half, copied)
    head = cut.head.gathered if cut.head is not None else 0.0
    kept = sum(unit.stored for unit in (*cut.own, *cut.frozen)) / world
    moving = 3 * sum(unit.gradients for unit in cut.own) / world
    everywhere = cut.tied + copied * (head or cut.tied)
    two = 2 * max(unit.gathered for unit in cut.blocks) + cut.rest.gathered + head  # with the one that is fetched next
    gathered = two if parts.in_blocks else sum(unit.gathered for unit in cut.own)
    gradients = max(unit.gradients for unit in cut.blocks) + (cut.head.gradients if cut.head is not None else 0.0)
    return Memory(
        everywhere + (0.0 if parts.offloaded else kept),
        3 * cut.trained + (0.0 if parts.offloaded else moving),
        whole.rollout + gathered,
        whole.update + two + gradients,
        whole.evaluation + gathered,
        kept + moving if parts.offloaded else 0.0,
    )


def of_busiest(algorithm: Algorithm, world: int, **batches: int) -> Algorithm:
    """Returns the algorithm of the process that has most prompts, alone; ``batches`` replaces its batch sizes."""
    given, old = algorithm, algorithm.trainer
    trainer: Trainer = rebuilt(
        old,
        prompts_per_update=math.ceil(old.prompts_per_update / world),
        eval_size=math.ceil(old.eval_size / world),
        minibatches=min(old.minibatches, own_samples(old, world)),
        **batches,
    )
    return Algorithm(given.task, given.policy, trainer=trainer, logger=given.loggers, **given.fillings)


def parts_of(algorithm: Algorithm, plan: Plan, policy: TransformersPolicy, processes: Processes) -> Parts:
    """Returns how the processes of a run keep their parts of the weights; each of them calls this.

    Where the recipe leaves it open, rollouts put all weights together if that fits in the memory of every process.

    Args:
        algorithm: the recipe.
        plan: of the algorithm.
        policy: on its device, not sharded yet.
        processes: that train together.
    """
    trainer, world = algorithm.trainer, processes.world
    parts = settings_of(trainer)
    if trainer.rollout_weights != "auto":
        return parts
    length = longest_prompt(algorithm, policy)
    need = sharded(memory(of_busiest(algorithm, world), plan, policy, length), plan, policy, world, parts)
    fits = need.peak <= (1 - FREE) * memory_of(policy.device)
    return replace(parts, in_blocks=not all(processes.gather(fits)))


def longest_prompt(algorithm: Algorithm, policy: TransformersPolicy) -> int:
    """Counts the tokens of the longest of the first prompts."""
    prompts = list(range(min(EXAMPLES, algorithm.task.size("train"))))
    batch = prompt_batch(algorithm.task, "train", prompts, policy, 1, algorithm.sampler.completion_length)
    return int(batch[PROMPT_MASK].sum(-1).max())


def settings_of(trainer: Trainer) -> Parts:
    """Returns how weights are kept and put together by a trainer's settings; all at once where they leave it open."""
    return Parts(trainer.precision == "bfloat16", trainer.offload == "cpu", trainer.rollout_weights == "blocks")


def memory_of(device: torch.device) -> float:
    """Returns the bytes of a card; on the CPU, a process's share of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
