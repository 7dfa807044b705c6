"""Estimates the arithmetic of an update from sizes alone: operations of each phase, and hours at a rate.

A multiplication and its addition are two operations. A state of S tokens costs, with P weights in the matrices of the
blocks, n layers, H heads of size h, and M positions whose logits are wanted from D features over V tokens:

    forward    2 P S + 4 n H h S^2 + 2 M D V
    backward   the same for the gradients of activations, the first term again for those of weights that are trained

and blocks that recompute their activations repeat their share of the forward. Everything else is small, and so is what
the head of a rollout costs: it is counted for half a block.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.policies.recompute import recomputed_blocks
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.estimate import ModelSizes, computed_positions, forwards, model_sizes


@dataclass(frozen=True)
class Arithmetic:
    """The floating-point operations of an update, by phase.

    Attributes:
        rollout: sampling.
        scoring: states that are scored again without gradients: correction, old and reference.
        update: forward and backward.
    """

    rollout: float
    scoring: float
    update: float

    @property
    def total(self) -> float:
        """All of an update."""
        return self.rollout + self.scoring + self.update


def arithmetic(
    algorithm: Algorithm, plan: Plan, policy: TransformersPolicy, prompt_length: int, recomputed: int | None = None
) -> Arithmetic:
    """Estimates the operations of an update, for a policy whose parameters may be on the ``meta`` device.

    Args:
        algorithm: the recipe.
        plan: of the algorithm.
        policy: with its adapter, if any.
        prompt_length: P, in tokens.
        recomputed: blocks that recompute their activations; None: those of the policy that do.
    """
    sampler, count, sizes = algorithm.sampler, forwards(algorithm, plan), model_sizes(policy)
    length = prompt_length + sampler.completion_length
    adapter = sum(p.numel() for _, p in policy.trainable()) if policy.adapter is not None else 0
    head = 2 * sizes.hidden * policy.vocab_size
    share = computed_positions(algorithm, prompt_length)
    decoded = _blocks(sizes, length) * (1.0 if share is None else share[1]) + head * sampler.block_length / 2
    scored = _blocks(sizes, length) + 2 * adapter * length + head * sampler.max_commits
    weights = 2 * (adapter or sizes.weights) * length
    again = recomputed_blocks(policy.model) if recomputed is None else recomputed
    passes = 2 + again / sizes.number
    return Arithmetic(
        rollout=count.rollout * decoded,
        scoring=(count.correction + count.old + count.reference) * scored,
        update=count.update * (passes * scored + weights),
    )


def _blocks(sizes: ModelSizes, length: int) -> float:
    """Returns the operations of the blocks for a state of ``length`` tokens."""
    return 2.0 * sizes.weights * length + 4.0 * sizes.number * sizes.heads * sizes.head * length**2


def in_words(work: Arithmetic, updates: int, gpus: int, tflops: float) -> list[str]:
    """Returns the lines of a report on the operations of an update, and on the hours of a run.

    Args:
        work: of an update.
        updates: of the run.
        gpus: cards that share the work, without loss.
        tflops: rate of one card, in 10^12 operations per second.
    """
    parts = (("rollout", work.rollout), ("scoring", work.scoring), ("update", work.update))
    shares = ", ".join(f"{name} {value / work.total:.0%}" for name, value in parts)
    hours = work.total * updates / (gpus * tflops * 1e12) / 3600
    cards = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
    return [
        f"arithmetic   {work.total / 1e15:.3g} PFLOP per update: {shares}",
        f"time         {hours:.3g} hours for {updates} updates on {cards} at {tflops:g} TFLOP/s each; evaluations and "
        "rewards are not counted",
    ]
