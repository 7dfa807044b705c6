"""What an update costs, from sizes alone: memory per phase and model forwards.

Memory, with c bytes per number in the computation, D the hidden size, H heads of size h and G key-value heads, F the
size of the MLP (of the chosen experts together):

    a token's activations in a layer, kept for the backward pass    c (8 D + 3 (H + 2 G) h + 4 F)
    with gradient checkpointing                                     c D, and one layer in full
    logits                                                          float32, at most ``LOGITS_BYTES`` at once, thrice

These are estimates: allocators, kernels and adapters add to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.policy import Policy, text_config
from dlmrl_kit.samplers.parts import LOGITS_BYTES

NF4_BYTES = 0.57
"""Bytes of a weight in 4 bits, with its share of the scales."""


@dataclass(frozen=True)
class Memory:
    """Bytes: ``weights`` and ``optimiser`` (with gradients) stay, ``rollout`` and ``update`` come on top, in turn."""

    weights: float
    optimiser: float
    rollout: float
    update: float

    @property
    def peak(self) -> float:
        """At the most."""
        return self.weights + self.optimiser + max(self.rollout, self.update)


@dataclass(frozen=True)
class Forwards:
    """States that go through the model in an update, at most.

    ``samples``: completions. ``rollout``: states sampled. ``correction``, ``old``, ``reference``: scored once more
    without gradients. ``update``: forward and backward. ``restarts``: components that sample more completions, which
    are not counted.
    """

    samples: int
    rollout: int
    correction: int
    old: int
    reference: int
    update: int
    restarts: tuple[str, ...]


def forwards(algorithm: Algorithm) -> Forwards:
    """Counts from the recipe's settings; rows that end early need fewer."""
    trainer, plan, likelihood = algorithm.trainer, algorithm.plan, algorithm.likelihood
    samples = trainer.prompts_per_update * trainer.group_size
    steps = algorithm.sampler.max_steps
    slots, correction = algorithm.selector.most_slots(steps), algorithm.correction
    scored = samples * slots * likelihood.copies
    again = sum(source is None for source in plan.old.values()) > 0
    passes = trainer.inner_iterations if likelihood.redraw else 1
    live = trainer.inner_iterations if plan.live_reference else 0
    return Forwards(
        samples=samples,
        rollout=samples * steps,
        correction=0 if correction is None else samples * (steps if correction.every_step else slots),
        old=scored * passes if again else 0,
        reference=scored * (passes * bool(plan.reference) + live),
        update=scored * trainer.inner_iterations,
        restarts=tuple(type(part).__name__ for part in algorithm.components if "restart" in part.requires),
    )


def computed_positions(algorithm: Algorithm, prompt_length: int) -> float | None:
    """Positions that a cached rollout computes, over those of an exact one; None without a cache.

    Each block takes a forward of everything for its anchor, then one of the window in each of its steps.
    """
    sampler = algorithm.sampler
    if algorithm.cache is None:
        return None
    length, block = sampler.completion_length, sampler.block_length
    whole, cached, exact = prompt_length + length, 0, 0
    for begin in range(0, length, block):
        size = min(block, length - begin)
        steps = -(-size // sampler.tokens_per_step)
        window = length - begin if algorithm.cache.to_end else size
        cached, exact = cached + whole + steps * window, exact + steps * whole
    return cached / exact


def memory(algorithm: Algorithm, policy: Policy, prompt_length: int) -> Memory:
    """The estimate for a policy whose parameters may be on the ``meta`` device.

    Args:
        algorithm: the recipe.
        policy: with its adapter, if any.
        prompt_length: P.
    """
    trainer, source = algorithm.trainer, algorithm.policy
    trained = sum(p.numel() for _, p in policy.trainable())
    frozen = [p for p in policy.model.parameters() if not p.requires_grad]
    nf4 = getattr(source, "quantisation", "none") == "nf4"
    sizes = [NF4_BYTES if nf4 and p.dim() == 2 else p.element_size() for p in frozen]
    weights = 4 * trained + sum(p.numel() * size for p, size in zip(frozen, sizes, strict=True))
    if algorithm.plan.needs_reference and policy.adapter is None:
        weights += 4 * trained
    compute = 2 if trainer.precision == "bfloat16" else 4
    layer, kept, layers = _layer(policy, getattr(source, "gradient_checkpointing", False))
    length, samples = algorithm.sampler.completion_length, trainer.prompts_per_update * trainer.group_size
    rows = min(trainer.rollout_batch_size or samples, samples)
    tokens = rows * (prompt_length + length)
    rollout = compute * tokens * layer + _logits(rows * length, policy) + _trajectories(algorithm, samples)
    if algorithm.cache is not None:
        rollout += compute * tokens * layers * _keys_and_values(policy)
    scored = min(trainer.micro_batch_size, samples) * min(forwards(algorithm).update // samples, 10**9)
    passed = scored * (prompt_length + length)
    if trainer.micro_batch_tokens is not None:
        passed = min(passed, max(trainer.micro_batch_tokens, prompt_length + length))
    update = compute * passed * (layers * kept + layer) + _logits(scored * algorithm.sampler.max_commits, policy)
    return Memory(weights, 12 * trained, rollout, update + _trajectories(algorithm, samples))


def _keys_and_values(policy: Policy) -> int:
    """Numbers per token in the keys and values of a layer."""
    _, groups, size = _heads(text_config(policy.model).to_dict())
    return 2 * groups * size


def _heads(sizes: dict[str, Any]) -> tuple[int, int, int]:
    """Heads, key-value heads and size of a head in a configuration."""
    hidden = sizes.get("hidden_size") or sizes["dim"]
    heads = sizes.get("num_attention_heads") or sizes["n_heads"]
    return heads, sizes.get("num_key_value_heads") or heads, sizes.get("head_dim") or hidden // heads


def _layer(policy: Policy, checkpointing: bool) -> tuple[int, int, int]:
    """Numbers per token in a layer's forward pass, those of them kept for the backward pass, and layers."""
    sizes = text_config(policy.model).to_dict()
    hidden = sizes.get("hidden_size") or sizes["dim"]
    heads, groups, size = _heads(sizes)
    inner = sizes.get("intermediate_size") or sizes.get("hidden_dim") or 4 * hidden
    chosen = sizes.get("num_experts_per_tok") or sizes.get("top_k_experts") or 0
    experts = chosen * sizes.get("moe_intermediate_size", 0)
    shared = inner if experts == 0 or "top_k_experts" in sizes else 0  # Gemma has both at once
    layer = 8 * hidden + 3 * (heads + 2 * groups) * size + 4 * (shared + experts)
    return layer, hidden if checkpointing else layer, sizes.get("num_hidden_layers") or sizes["n_layers"]


def _logits(predictions: int, policy: Policy) -> float:
    return 3.0 * min(4 * predictions * policy.vocab_size, LOGITS_BYTES[False])


def _trajectories(algorithm: Algorithm, samples: int) -> float:
    """Whole states per step, where the sampler keeps them; the rest of a trajectory is small."""
    wide = {"greedy_ids": 4, "draft_ids": 4, "state_ids": 4, "accepted": 1}
    size = sum(wide.get(key[1], 0) for key in algorithm.sampler.written_keys() if isinstance(key, tuple))
    return float(samples * algorithm.sampler.max_steps * algorithm.sampler.completion_length * size)


def describe(value: Any) -> str:
    """Bytes in words."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**27 else f"{value / 2**20:.1f} MiB"
