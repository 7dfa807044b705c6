"""Estimates what the processes of a run send each other in an update, from sizes alone.

The bytes that a collective is about are its payload. Of W processes in a ring, each sends

    all-reduce                   2 (W - 1) / W of the payload
    all-gather, reduce-scatter     (W - 1) / W of the payload

and what leaves a machine is as much, over all its cards together, as each process sends. Python objects (counts,
metrics) travel, too; they are small, and are left out. So is what happens once in a run: evaluations, checkpoints, the
check before the first update.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.policies.adapter import blocks
from dlmrl_kit.policies.sharding import Parts
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.trainers.trainer import Trainer


@dataclass(frozen=True)
class Unit:
    """Parameters that are put together and taken apart at once; sizes are bytes over all processes, padding included.

    Attributes:
        stored: of the weights, as they are kept.
        gathered: of the weights, as they travel.
        gradients: of the gradients of those that are trained, in float32.
    """

    stored: float
    gathered: float
    gradients: float


@dataclass(frozen=True)
class Units:
    """How ``policies.sharding`` cuts a policy among W processes.

    Attributes:
        blocks: the transformer blocks.
        rest: what else belongs to the body: embeddings and the last norm.
        head: the head; None: it is tied to the embeddings, and stays whole.
        frozen: blocks and rest of the frozen reference; empty without one.
        tied: bytes of the weights that stay whole.
        trained: of these, what has gradients.
    """

    blocks: list[Unit]
    rest: Unit
    head: Unit | None
    frozen: list[Unit]
    tied: float
    trained: float

    @property
    def body(self) -> list[Unit]:
        """What is put together for every forward."""
        return [*self.blocks, self.rest]

    @property
    def own(self) -> list[Unit]:
        """All that is cut, but for the reference."""
        return [*self.body, *([] if self.head is None else [self.head])]


def units(policy: TransformersPolicy, world: int, half: bool, reference: bool) -> Units:
    """Finds the units of a policy, whose parameters may be on the ``meta`` device.

    Args:
        policy: with its adapter, if any.
        world: W.
        half: whether blocks travel in bfloat16.
        reference: whether there is a frozen copy of the policy.
    """
    model = policy.model
    head: nn.Module = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    of_blocks = [list(block.parameters()) for block in blocks(model).values()]
    apart = {id(parameter) for block in of_blocks for parameter in block} | {id(p) for p in head.parameters()}
    rest = [parameter for parameter in model.get_decoder().parameters() if id(parameter) not in apart]
    found = [_unit(block, world, half) for block in of_blocks]
    frozen = [Unit(u.stored, u.gathered, 0.0) for u in (*found, _unit(rest, world, False))] if reference else []
    whole = [p for p in head.parameters() if tied]
    return Units(
        found,
        _unit(rest, world, False),
        None if tied else _unit(head.parameters(), world, False),
        frozen,
        float(sum(p.numel() * stored_bytes(p) for p in whole)),
        4.0 * sum(p.numel() for p in whole if p.requires_grad),
    )


def _unit(parameters: Iterable[nn.Parameter], world: int, half: bool) -> Unit:
    stored = gathered = gradients = 0.0
    for parameter in parameters:
        rows = parameter.shape[0] if parameter.dim() else 1
        numbers = parameter.numel() / max(rows, 1) * math.ceil(rows / world) * world  # cut between rows, and padded
        size = stored_bytes(parameter)
        stored += numbers * size
        gathered += numbers * (2 if half else size)
        gradients += 4 * numbers * parameter.requires_grad
    return Unit(stored, gathered, gradients)


def stored_bytes(parameter: nn.Parameter) -> int:
    """Returns the bytes of a number of a weight in training, where trained weights have at least float32."""
    small = parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16)
    return 4 if small else parameter.element_size()


@dataclass(frozen=True)
class Exchange:
    """Payloads of an update, in bytes, by what they are for.

    Attributes:
        rollout: all-gather of all weights for rollout and scoring, once or, in blocks, for each forward.
        reference: all-gather of the frozen reference, block by block.
        weights: all-gather of the weights for forwards and backwards of the update.
        scattered: reduce-scatter of gradients.
        reduced: all-reduce of gradients.
    """

    rollout: float = 0.0
    reference: float = 0.0
    weights: float = 0.0
    scattered: float = 0.0
    reduced: float = 0.0

    @property
    def gathered(self) -> float:
        """Payload of all all-gathers."""
        return self.rollout + self.reference + self.weights

    def sent(self, world: int) -> float:
        """Returns the bytes that each of ``world`` processes sends."""
        return (world - 1) / world * (self.gathered + self.scattered + 2 * self.reduced)


@dataclass(frozen=True)
class Passes:
    """How often a process goes through the model in an update, in which all keep in step.

    Attributes:
        steps: optimiser steps.
        update: forwards, each with its backward.
        reference: forwards of the reference.
        rollout: forwards of sampling and scoring, at most.
    """

    steps: int
    update: int
    reference: int
    rollout: int


def passes(
    algorithm: Algorithm, plan: Plan, world: int, micro_batch: int | None = None, rollout_batch: int | None = None
) -> Passes:
    """Counts the passes of the process with most samples; micro-batches that are cut by tokens count as one.

    Of several minibatches each is taken to hold the same share of every process; really, they are drawn at random.

    Args:
        algorithm: the recipe.
        plan: of the algorithm.
        world: W.
        micro_batch: samples per forward and backward; None: as the recipe says.
        rollout_batch: samples that are generated at once; None: as the recipe says.
    """
    trainer, sampler = algorithm.trainer, algorithm.sampler
    samples, micro_batch = own_samples(trainer, world), micro_batch or trainer.micro_batch_size
    steps = trainer.inner_iterations * trainer.minibatches
    live = math.ceil(samples / trainer.minibatches / micro_batch) * steps
    again = math.ceil(samples / micro_batch)
    redrawn = trainer.inner_iterations if algorithm.likelihood.redraw else 1
    reference = again * redrawn * bool(plan.reference) + live * bool(plan.live_reference)
    decoded = math.ceil(samples / (rollout_batch or trainer.rollout_batch_size or samples)) * sampler.max_steps
    scored = again * (redrawn * bool(plan.computed_old) + (algorithm.correction is not None))
    return Passes(steps, live, reference if plan.needs_reference else 0, decoded + scored)


def own_samples(trainer: Trainer, world: int) -> int:
    """Returns the samples of the process that has most of them."""
    return math.ceil(trainer.prompts_per_update / world) * trainer.group_size


def exchange(
    plan: Plan, policy: TransformersPolicy, world: int, count: Passes, sharding: str, parts: Parts
) -> Exchange:
    """Estimates the payloads of an update.

    Args:
        plan: of the algorithm.
        policy: its parameters may be on the ``meta`` device.
        world: W, the number of processes.
        count: of the process with most samples: all keep in step with it.
        sharding: as ``Trainer.sharding``.
        parts: how sharded weights are put together.
    """
    trained = 4.0 * sum(p.numel() for _, p in policy.trainable())
    if world == 1:
        return Exchange()
    if sharding == "none":
        return Exchange(reduced=count.steps * trained)
    copied = plan.needs_reference and policy.adapter is None
    cut = units(policy, world, parts.half, copied)
    body, head = sum(unit.gathered for unit in cut.body), cut.head
    gradients, of_head = sum(unit.gradients for unit in cut.body), 0.0 if head is None else head.gathered
    live = bool(plan.live_reference) and not copied  # a forward more, with the adapter off
    return Exchange(
        rollout=count.rollout * body + 2 * of_head if parts.in_blocks else body + of_head,
        reference=count.reference * sum(unit.gathered for unit in cut.frozen),
        weights=(2 + live) * count.update * body + count.steps * of_head,
        scattered=count.update * gradients + count.steps * (0.0 if head is None else head.gradients),
        reduced=count.steps * cut.trained,
    )
