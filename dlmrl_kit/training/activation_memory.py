"""Chooses how many transformer blocks recompute their activations: the fewest with which a micro-batch's fit in memory.

Of a block that does, only its input is stored, and the backward pass runs it again. Whether it does changes no number,
so that a resumed run may choose anew, by the memory that is free then. The activations are those of the estimate of the
dry run (``training.estimate``), for the process with most samples; all processes choose by the one with least memory,
since those with parts of the weights must run the same blocks.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.validate import refuse_value
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.recompute import recompute_blocks, text_blocks
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.estimate import Memory, activations, describe, memory
from dlmrl_kit.training.free_memory import free_memory
from dlmrl_kit.training.sharded_memory import FREE, longest_prompt, of_busiest, settings_of, sharded

GIB = 2**30


@dataclass(frozen=True)
class Recomputation:
    """How many blocks recompute their activations, and why.

    Attributes:
        source: of the policy, which left it open.
        number: blocks that do.
        blocks: that there are.
        activations: bytes of a micro-batch's, by the estimate.
        budget: bytes that they may take.
    """

    source: PolicySource
    number: int
    blocks: int
    activations: float
    budget: float

    @property
    def fits(self) -> bool:
        """Whether the activations fit, which they may not although all blocks recompute."""
        return self.activations <= self.budget

    @property
    def is_refused(self) -> bool:
        """Whether the activations do not fit into what the user gives them; what is free is no such limit."""
        return self.source.activation_gib is not None and not self.fits

    def checked(self) -> Recomputation:
        """Returns this.

        Raises:
            ParameterError: it is refused.
        """
        if self.is_refused:
            reason = (
                f"= {self.source.activation_gib} is too small: the activations of a micro-batch take about "
                f"{self.activations / GIB:.3g} GiB although all {self.blocks} blocks are recomputed; give as much, "
                "or lower Trainer.micro_batch_size or Trainer.micro_batch_tokens"
            )
            refuse_value(self.source, "activation_gib", reason)
        return self

    def in_words(self, place: str = "free memory") -> str:
        """Says what is chosen, and by what; ``place``: what limits the activations, if the user does not."""
        name = type(self.source).__name__
        limit = place if self.source.activation_gib is None else f"{name}.activation_gib"
        line = (
            f"{name}.gradient_checkpointing = 'auto': {self.number} of {self.blocks} blocks are recomputed; the "
            f"activations of a micro-batch take about {describe(self.activations)}, {limit} allows "
            f"{describe(max(self.budget, 0.0))}"
        )
        return (
            line if self.fits else f"{line}: too little; lower Trainer.micro_batch_size or Trainer.micro_batch_tokens"
        )


def fewest_blocks(
    algorithm: Algorithm, plan: Plan, policy: TransformersPolicy, prompt_length: int, need: Memory, room: float
) -> Recomputation:
    """Chooses the fewest blocks by sizes alone.

    Args:
        algorithm: of the process with most samples.
        plan: of the algorithm.
        policy: its parameters may be on the ``meta`` device.
        prompt_length: P, in tokens.
        need: memory of that process with no block recomputed.
        room: bytes that weights, gradients, optimiser and an update may take together.

    Raises:
        UserError: the model has no blocks that the kit can find.
    """
    source, blocks = algorithm.policy, len(text_blocks(policy.model))

    def size(number: int) -> float:
        return activations(algorithm, plan, policy, prompt_length, number)

    budget = room - (need.weights + need.optimiser + need.update - size(0))
    if source.activation_gib is not None:
        budget = source.activation_gib * GIB
    number = bisect_left(range(blocks), -budget, key=lambda number: -size(number))  # sizes fall with the number
    return Recomputation(source, number, blocks, size(number), budget)


def recompute_as_needed(
    algorithm: Algorithm, plan: Plan, policy: TransformersPolicy, processes: Processes
) -> Recomputation:
    """Chooses by the memory that there is, and makes blocks recompute; each process of a run calls this.

    Args:
        algorithm: the recipe.
        plan: of the algorithm.
        policy: on its device, with its reference, neither sharded nor compiled yet.
        processes: that train together.

    Raises:
        UserError: as ``fewest_blocks`` and ``Recomputation.checked``.
    """
    trainer, length = algorithm.trainer, longest_prompt(algorithm, policy)
    busiest = of_busiest(algorithm, processes.world)
    held = _held(policy)
    need = replace(memory(busiest, plan, policy, length, recomputed=0), weights=held)
    if trainer.sharding != "none" and processes.world > 1:
        need = sharded(need, plan, policy, processes.world, settings_of(trainer))
    room = (1 - FREE) * (free_memory(policy.device) + held)
    found = fewest_blocks(busiest, plan, policy, length, need, min(processes.gather(room))).checked()
    recompute_blocks(policy.model, found.number)
    return found


def _held(policy: TransformersPolicy) -> float:
    """Returns the bytes of the weights in memory, those in 4 bits as they are packed."""
    models = [policy.model, *([] if policy.frozen is None else [policy.frozen])]
    return float(sum(p.numel() * p.element_size() for model in models for p in model.parameters()))
