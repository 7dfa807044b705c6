"""What a verdict covers, and what of the recipe it leaves out, in words."""

from __future__ import annotations

from dataclasses import dataclass

from dlmrl_kit.algorithm.algorithm import Algorithm, GradientEstimator
from dlmrl_kit.caches.adaptive_refresh import AdaptiveRefresh


@dataclass(frozen=True)
class Scope:
    """Says what was judged.

    Attributes:
        covers: in words.
        left_out: what the recipe does besides, one entry each.
        optimiser_steps: that the recipe takes on a rollout; only the gradient of the first is judged.
    """

    covers: str
    left_out: tuple[str, ...] = ()
    optimiser_steps: int = 1


def scope_of(algorithm: GradientEstimator, group_size: int, prompts_per_update: int) -> Scope:
    """Says what an audit of an algorithm with batches of this size covers."""
    prompts = "prompt" if prompts_per_update == 1 else "prompts"
    covers = (
        f"the first gradient of a rollout of {prompts_per_update} {prompts} with {group_size} completions each, in one "
        "minibatch, without regularisers, before gradient clipping and the optimiser"
    )
    left_out = [f"{type(term).__name__}: a regulariser" for term in algorithm.regularisers]
    if isinstance(algorithm.cache, AdaptiveRefresh):
        left_out.append("AdaptiveRefresh: shorter intervals than the longest, which are nearer to the policy")
    if not isinstance(algorithm, Algorithm):
        return Scope(covers, tuple(left_out))
    trainer = algorithm.trainer
    if trainer.minibatches > 1:
        left_out.append(f"Trainer.minibatches = {trainer.minibatches}: minibatches after the first are off-policy")
    if trainer.inner_iterations > 1:
        left_out.append(f"Trainer.inner_iterations = {trainer.inner_iterations}: passes after the first are off-policy")
    left_out.append(f"Trainer.max_grad_norm = {trainer.max_grad_norm:g} and AdamW")
    return Scope(covers, tuple(left_out), trainer.minibatches * trainer.inner_iterations)
