"""Estimates what an update costs from sizes alone: bytes per phase and model forwards.

With c bytes per number in the computation, hidden size D, H heads of size h, G key-value heads, and F the size of the
MLP (of all chosen experts together), the memory is taken to be:

    a token's activations in a layer, stored for the backward pass    c (8 D + 3 (H + 2 G) h + 4 F)
    of a layer that is recomputed                                     c D
    the layer that the backward pass is in                            as much as a layer's activations in full
    logits                                                            float32, at most ``LOGITS_BYTES`` at once, thrice

Allocators, kernels and adapters add to these estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.caches.adaptive_refresh import AdaptiveRefresh
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.keys import STEP_ACCEPTED, STEP_DRAFT_IDS, STEP_GREEDY_IDS, STEP_STATE_IDS, Key
from dlmrl_kit.core.policy import LOGITS_BYTES, Policy
from dlmrl_kit.core.window import cell_of
from dlmrl_kit.policies.recompute import recomputed_blocks
from dlmrl_kit.policies.transformers_policy import TransformersPolicy, text_config
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.trainers.trainer import Trainer

NF4_BYTES = 0.57
"""Bytes of a weight in the 4-bit format NF4, with its share of the scales."""

STATE_BYTES: Mapping[Key, int] = {STEP_GREEDY_IDS: 4, STEP_DRAFT_IDS: 4, STEP_STATE_IDS: 4, STEP_ACCEPTED: 1}
"""Bytes per position of the large keys [B, T, L] that a sampler may write, which hold whole states of every step."""


@dataclass(frozen=True)
class Memory:
    """The bytes that an update takes.

    Attributes:
        weights, optimiser: what is always in memory; ``optimiser`` includes the gradients.
        rollout, update, evaluation: what these phases need on top of that, one after the other.
        offloaded: what lies in the CPU's memory instead.
    """

    weights: float
    optimiser: float
    rollout: float
    update: float
    evaluation: float
    offloaded: float = 0.0

    @property
    def peak(self) -> float:
        """The most bytes that are in use at once."""
        return self.weights + self.optimiser + max(self.rollout, self.update, self.evaluation)


@dataclass(frozen=True)
class Forwards:
    """The most states that go through the model in an update.

    Attributes:
        samples: completions.
        rollout: states that the sampler visits.
        correction, old, reference: states that are scored again, without gradients.
        update: states that are scored forward and backward.
        restarts: names of the components that sample more completions, which are not counted here.
    """

    samples: int
    rollout: int
    correction: int
    old: int
    reference: int
    update: int
    restarts: tuple[str, ...]


def forwards(algorithm: Algorithm, plan: Plan) -> Forwards:
    """Counts the states of an update from the recipe's settings; rows that end early need fewer."""
    trainer, sampler, likelihood = algorithm.trainer, algorithm.sampler, algorithm.likelihood
    samples = trainer.prompts_per_update * trainer.group_size
    segments, correction = algorithm.selector.most_selected(sampler.max_steps), algorithm.correction
    scored = samples * segments * likelihood.forwards(sampler.completion_length)
    passes = trainer.inner_iterations if likelihood.redraw else 1
    live = trainer.inner_iterations if plan.live_reference else 0
    steps_corrected = sampler.max_steps if correction is not None and correction.every_step else segments
    return Forwards(
        samples=samples,
        rollout=samples * sampler.max_steps,
        correction=0 if correction is None else samples * steps_corrected,
        old=scored * passes if plan.computed_old else 0,
        reference=scored * (passes * bool(plan.reference) + live),
        update=scored * trainer.inner_iterations,
        restarts=tuple(type(part).__name__ for part in algorithm.components if "restart" in part.requires),
    )


def computed_positions(algorithm: Algorithm, prompt_length: int) -> tuple[float, float] | None:
    """Returns the share of an exact rollout's positions that a cached rollout computes; None without a cache.

    Returns:
        Of ``AdaptiveRefresh`` the share of its longest interval, and at most how much it is in an update; of other
        caches twice at most how much it is.
    """
    cache, block = algorithm.cache, algorithm.sampler.block_length
    if cache is None:
        return None
    if isinstance(cache, AdaptiveRefresh):
        shares = [_computed_with(cache.at(pace), algorithm.sampler, prompt_length) for pace in cache.paces(block)]
        return shares[-1], max(shares)
    share = _computed_with(cache, algorithm.sampler, prompt_length)
    return share, share


def _computed_with(cache: Cache, sampler: Sampler, prompt_length: int) -> float:
    """Returns the largest share of positions that a rollout with a cache computes.

    For each block it computes all positions once, for the anchor, and the window in every step. With refreshes within
    the block it computes all positions at most once for each cell, and no window in the step that begins the block.
    """
    length, block = sampler.completion_length, sampler.block_length
    cell = cell_of(cache.refresh, block)
    whole, cached, exact = prompt_length + length, 0, 0
    for begin in range(0, length, block):
        size = min(block, length - begin)
        steps, anchors = sampler.block_steps(size), -(-size // cell)
        windows = steps if cell == block else steps - 1
        if cell == 1:
            windows, anchors = 0, steps
        window = length - begin if cache.to_end else size
        cached += min(anchors, steps) * whole + windows * window
        exact += steps * whole
    return cached / exact


def memory(
    algorithm: Algorithm, plan: Plan, policy: TransformersPolicy, prompt_length: int, recomputed: int | None = None
) -> Memory:
    """Estimates the memory of an update, for a policy whose parameters may be on the ``meta`` device.

    Args:
        algorithm: the recipe.
        plan: of the algorithm.
        policy: with its adapter, if any.
        prompt_length: P, in tokens.
        recomputed: blocks that recompute their activations; None: those of the policy that do.
    """
    trainer, sampler = algorithm.trainer, algorithm.sampler
    trained = sum(p.numel() for _, p in policy.trainable())
    compute, layer = _number_bytes(trainer), layer_sizes(policy)
    samples, kept = trainer.prompts_per_update * trainer.group_size, _trajectories(algorithm, plan)
    length = prompt_length + sampler.completion_length

    rows = min(trainer.rollout_batch_size or samples, samples)
    rollout = _decoding(rows, length, algorithm, policy) + kept
    if algorithm.cache is not None:
        rollout += compute * rows * length * layer.number * layer.keys_and_values

    stored = activations(algorithm, plan, policy, prompt_length, recomputed)
    update = stored + _logits(_scored(algorithm, plan) * sampler.max_commits, policy) + kept
    # An evaluation records nothing, and uses no cache.
    evaluation = _decoding(evaluated_at_once(trainer), length, algorithm, policy)
    return Memory(_weights(algorithm, plan, policy), 12 * trained, rollout, update, evaluation)


def activations(
    algorithm: Algorithm, plan: Plan, policy: TransformersPolicy, prompt_length: int, recomputed: int | None = None
) -> float:
    """Estimates the bytes of a micro-batch's activations, at most; arguments as ``memory``."""
    trainer, length = algorithm.trainer, prompt_length + algorithm.sampler.completion_length
    passed = _scored(algorithm, plan) * length
    if trainer.micro_batch_tokens is not None:
        passed = min(passed, max(trainer.micro_batch_tokens, length))
    again = recomputed_blocks(policy.model) if recomputed is None else recomputed
    return float(_number_bytes(trainer) * passed * layer_sizes(policy).alive(again))


def _scored(algorithm: Algorithm, plan: Plan) -> int:
    """Counts the states of a micro-batch's samples."""
    trainer = algorithm.trainer
    samples = trainer.prompts_per_update * trainer.group_size
    return min(trainer.micro_batch_size, samples) * min(forwards(algorithm, plan).update // samples, 10**9)


def _decoding(rows: int, length: int, algorithm: Algorithm, policy: TransformersPolicy) -> float:
    """Adds up the bytes of decoding ``rows`` completions at once; with their prompts they are ``length`` tokens."""
    layer, states = layer_sizes(policy), algorithm.sampler.states_at_once(rows)
    logits = _logits(states * algorithm.sampler.completion_length, policy)
    return _number_bytes(algorithm.trainer) * states * length * layer.computed + logits


def _number_bytes(trainer: Trainer) -> int:
    """Returns the bytes of a number in the computation."""
    return 2 if trainer.precision == "bfloat16" else 4


def evaluated_at_once(trainer: Trainer) -> int:
    """Returns how many completions an evaluation decodes at once."""
    return min(trainer.eval_batch_size, trainer.eval_size)


def _weights(algorithm: Algorithm, plan: Plan, policy: TransformersPolicy) -> float:
    """Adds up the bytes of the policy and, if one is needed, of its copy as the reference."""
    trained = sum(p.numel() for _, p in policy.trainable())
    frozen = [p for p in policy.model.parameters() if not p.requires_grad]
    nf4 = algorithm.policy.quantisation == "nf4"
    sizes = [NF4_BYTES if nf4 and p.dim() == 2 else p.element_size() for p in frozen]
    weights = 4 * trained + sum(p.numel() * size for p, size in zip(frozen, sizes, strict=True))
    return weights + 4 * trained if plan.needs_reference and policy.adapter is None else weights


@dataclass(frozen=True)
class LayerSize:
    """The sizes of a model's layers, in numbers per token.

    Attributes:
        entering: numbers that a layer is given; all that is stored of one that is recomputed.
        computed: numbers that the forward pass of a layer computes, and stores for the backward pass.
        keys_and_values: numbers in the keys and values of a layer.
        number: how many layers there are.
    """

    entering: int
    computed: int
    keys_and_values: int
    number: int

    def alive(self, recomputed: int) -> int:
        """Counts the numbers that an update has in memory at once, at most, if so many layers are recomputed."""
        return recomputed * self.entering + (self.number - recomputed) * self.computed + self.computed


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model's blocks.

    Attributes:
        hidden: size of the hidden states.
        heads, groups, head: attention heads, heads of keys and values, and the size of one.
        inner: size of the MLP, of all experts that a token chooses together.
        number: how many blocks there are.
        weights: in the matrices of all blocks that a token goes through, an adapter left out.
    """

    hidden: int
    heads: int
    groups: int
    head: int
    inner: int
    number: int
    weights: int


def model_sizes(policy: TransformersPolicy) -> ModelSizes:
    """Reads the sizes of a model from its configuration, whichever names its family uses."""
    sizes = text_config(policy.model).to_dict()
    hidden = sizes.get("hidden_size") or sizes["dim"]
    heads = sizes.get("num_attention_heads") or sizes["n_heads"]
    groups, size = sizes.get("num_key_value_heads") or heads, sizes.get("head_dim") or hidden // heads
    inner = sizes.get("intermediate_size") or sizes.get("hidden_dim") or 4 * hidden
    chosen = sizes.get("num_experts_per_tok") or sizes.get("top_k_experts") or 0
    experts = chosen * sizes.get("moe_intermediate_size", 0)
    shared = inner if experts == 0 or "top_k_experts" in sizes else 0  # Gemma has both at once
    shared += sizes.get("n_shared_experts", 0) * sizes.get("moe_intermediate_size", 0)
    number = sizes.get("num_hidden_layers") or sizes["n_layers"]
    weights = number * hidden * (2 * (heads + groups) * size + 3 * (shared + experts))
    return ModelSizes(hidden, heads, groups, size, shared + experts, number, weights)


def layer_sizes(policy: TransformersPolicy) -> LayerSize:
    """Counts the numbers of a model's layers, from its sizes."""
    sizes = model_sizes(policy)
    computed = 8 * sizes.hidden + 3 * (sizes.heads + 2 * sizes.groups) * sizes.head + 4 * sizes.inner
    return LayerSize(sizes.hidden, computed, 2 * sizes.groups * sizes.head, sizes.number)


def _logits(predictions: int, policy: Policy) -> float:
    return 3.0 * min(4 * predictions * policy.vocab_size, LOGITS_BYTES[False])


def _trajectories(algorithm: Algorithm, plan: Plan) -> float:
    """Adds up the bytes of the states that the sampler stores for every step; the rest of a trajectory is small."""
    trainer, sampler = algorithm.trainer, algorithm.sampler
    size = sum(STATE_BYTES.get(key, 0) for key in plan.sampler.writes)
    samples = trainer.prompts_per_update * trainer.group_size
    return float(samples * sampler.max_steps * sampler.completion_length * size)


def describe(value: float) -> str:
    """Writes a number of bytes in MiB or GiB."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**27 else f"{value / 2**20:.1f} MiB"
