"""Likelihoods of segments: the tokens committed between two states, scored in masked copies of the completion.

A slot of the selection stands for the steps from ``step`` up to, not including, ``end``: one denoising step, a segment
of several, or the whole completion. An estimator says, for each segment, in which copies of the completion which
positions are masked and which are scored; all copies of all segments go through the policy as one flat batch. Random
masks are a function of each sample's seed, so that the shape of a batch never changes a mask and the old, the new and the
reference policy see the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.behaviour import LOG_ZERO
from dlmrl_kit.component import Key
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.seeding import combine_seeds, uniforms

LOG_PROB: Key = ("selected", "log_prob")
TOKEN_LOG_PROB: Key = ("selected", "token_log_prob")
TOKEN_MASK: Key = ("selected", "token_mask")
LENGTH: Key = ("sequence", "length")


@dataclass(frozen=True)
class Segments:
    """The R slots of weight > 0 of a batch, flat, in row-major order.

    ``prompt_ids``, ``prompt_mask`` [R, P]; ``tokens`` int64 [R, L], the final ones; ``commit_step`` [R, L]; ``start``,
    ``end`` int64 [R]; ``counted`` bool [R, L], positions that are scored at all; ``draw`` int64 [R], the slot's number
    in 0 .. ``draws`` - 1 (K); ``sample_seed`` int64 [R], the same for the slots of a sample; ``slots`` bool [B, K],
    where they come from.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    tokens: Tensor
    commit_step: Tensor
    start: Tensor
    end: Tensor
    counted: Tensor
    draw: Tensor
    draws: int
    sample_seed: Tensor
    slots: Tensor

    @property
    def targets(self) -> Tensor:
        """Positions committed in the segment: bool [R, L]."""
        inside = (self.commit_step >= self.start[:, None]) & (self.commit_step < self.end[:, None])
        return inside & self.counted

    def uniforms(self, purpose: str, *shape: int) -> Tensor:
        """Uniform numbers of each slot's own, float64 [R, *shape] in [0, 1)."""
        return uniforms(combine_seeds(self.sample_seed, self.draw), *shape, purpose=purpose)

    def shared_uniforms(self, purpose: str, *shape: int) -> Tensor:
        """Uniform numbers that the slots of a sample share, float64 [R, *shape] in [0, 1)."""
        return uniforms(self.sample_seed, *shape, purpose=purpose)

    def scatter(self, values: Tensor) -> Tensor:
        """Values [R, ...] back into [B, K, ...], zeros elsewhere; differentiable."""
        out = values.new_zeros((*self.slots.shape, *values.shape[1:]))
        return out.index_put(self.slots.nonzero(as_tuple=True), values)


@dataclass(frozen=True)
class Copies:
    """M masked copies of each segment's completion.

    ``masked``, ``scored``: bool [R, M, L], scored positions are masked; ``prompt_masked``: bool [R, M, P], prompt tokens
    that are masked too, or None.
    """

    masked: Tensor
    scored: Tensor
    prompt_masked: Tensor | None = None


def counted_positions(completion_ids: Tensor, eos_id: int | None, after_eos: bool) -> Tensor:
    """Completion positions that count: bool [B, L]; those up to the first end of text, itself included, or all."""
    if after_eos or eos_id is None:
        return torch.ones_like(completion_ids, dtype=torch.bool)
    is_eos = completion_ids == eos_id
    return is_eos.long().cumsum(-1) - is_eos.long() == 0


def prompt_masks(segments: Segments, share: float, copies: int) -> Tensor | None:
    """Each prompt token masked with probability ``share`` in each of M copies: bool [R, M, P], or None for share 0."""
    if share == 0:
        return None
    width = segments.prompt_ids.shape[1]
    from_right = segments.uniforms("prompt mask", copies, width).flip(-1)  # padding on the left changes no draw
    return (from_right < share) & segments.prompt_mask[:, None, :]


class SegmentLikelihood(Likelihood):
    """Base class of segment likelihoods: subclasses implement ``masks``, and ``combine`` where copies are weighted.

    Args:
        sampling_temperature: True scores with the sampler's behaviour distribution (temperature and filters); False
            with softmax(logits), as most released codes do whatever temperature they sampled at.
        after_eos: whether positions behind the first end of text are scored too.
        redraw: draw new random masks in each pass over a rollout (then also reads ``iteration``).

    Reads the trajectory, the selection with ``("selected", "end")``, and ``seed``. Writes ``("selected", "log_prob")``
    [B, K]; on demand ``("selected", "token_log_prob")``, ``("selected", "token_mask")`` [B, K, L] and
    ``("sequence", "length")`` int64 [B]. No sampler records these: they are computed under the old policy before the
    update.
    """

    optional_keys = (TOKEN_MASK, TOKEN_LOG_PROB, LENGTH)

    def __init__(self, sampling_temperature: bool = True, after_eos: bool = False, redraw: bool = False) -> None:
        super().__init__()
        self.sampling_temperature = sampling_temperature
        self.after_eos = after_eos
        self.redraw = redraw
        self.in_keys = [*self.in_keys, ("selected", "end"), "seed", *(["iteration"] if redraw else [])]

    @property
    def recorded(self) -> dict[Key, Key]:
        """None."""
        return {}

    def masks(self, segments: Segments) -> Copies:
        """The masked copies of each segment."""
        raise NotImplementedError

    def combine(self, log_probs: Tensor, copies: Copies, segments: Segments) -> tuple[Tensor, Tensor]:
        """From the log-probabilities of the scored tokens, [R, M, L], to the segment's and its tokens'.

        Returns:
            [R] and [R, L]; here the sum over copies and positions, and the sum over copies.
        """
        return log_probs.sum((1, 2)), log_probs.sum(1)

    def token_mask(self, copies: Copies, segments: Segments) -> Tensor:
        """Which entries of the tokens' log-probabilities count: bool [R, L]."""
        return copies.scored.any(1)

    def prepare(self, tensordict: TensorDictBase, *, sampler: Sampler, policy: Policy) -> TensorDictBase:
        """Adds what was asked for and does not depend on the policy's weights: token mask and length."""
        if TOKEN_MASK in self.asked:
            segments = self.segments(tensordict, policy)
            tensordict.set(TOKEN_MASK, segments.scatter(self.token_mask(self.masks(segments), segments)))
        if LENGTH in self.asked:
            counted = counted_positions(tensordict["completion_ids"], policy.eos_id, self.after_eos)
            tensordict.set(LENGTH, counted.sum(-1))
        return tensordict

    def segments(self, tensordict: TensorDictBase, policy: Policy) -> Segments:
        """The used slots of a batch."""
        slots = tensordict["selected", "weight"] > 0
        row, column = slots.nonzero(as_tuple=True)
        seed = tensordict["seed"]
        if self.redraw:
            seed = combine_seeds(seed, tensordict["iteration"])
        counted = counted_positions(tensordict["completion_ids"], policy.eos_id, self.after_eos)
        return Segments(
            prompt_ids=tensordict["prompt_ids"][row],
            prompt_mask=tensordict["prompt_mask"][row],
            tokens=tensordict["completion_ids"][row],
            commit_step=tensordict["commit_step"][row].long(),
            start=tensordict["selected", "step"][slots],
            end=tensordict["selected", "end"][slots],
            counted=counted[row],
            draw=column,
            draws=slots.shape[1],
            sample_seed=seed[row],
            slots=slots,
        )

    def forward(self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler) -> TensorDictBase:
        """Adds the log-probabilities, [B, K] and [B, K, L]."""
        segments = self.segments(tensordict, policy)
        copies = self.masks(segments)
        log_probs = score(segments, copies, policy, sampler, self.sampling_temperature)
        total, tokens = self.combine(log_probs, copies, segments)
        tensordict.set(LOG_PROB, segments.scatter(total))
        if TOKEN_LOG_PROB in self.asked:
            tensordict.set(TOKEN_LOG_PROB, segments.scatter(tokens))
        return tensordict


def score(segments: Segments, copies: Copies, policy: Policy, sampler: Sampler, sampling_temperature: bool) -> Tensor:
    """Log-probability of every scored token in every copy, 0 elsewhere: [R, M, L], one flat batch of R * M states."""
    count, width, length = copies.masked.shape
    masked, scored = copies.masked.flatten(0, 1), copies.scored.flatten(0, 1)
    tokens = segments.tokens.repeat_interleave(width, 0)
    prompt_ids = segments.prompt_ids.repeat_interleave(width, 0)
    if copies.prompt_masked is not None:
        prompt_ids = prompt_ids.masked_fill(copies.prompt_masked.flatten(0, 1), policy.mask_id)
    prompt = TensorDict(
        {"prompt_ids": prompt_ids, "prompt_mask": segments.prompt_mask.repeat_interleave(width, 0)}, [count * width]
    )
    view = sampler.view(policy, prompt, tokens.masked_fill(masked, policy.mask_id), scored)
    log_probs: Any = view.log_probs if sampling_temperature else view.logits.log_softmax(-1)
    picked = log_probs.gather(-1, tokens[scored][:, None]).squeeze(-1).clamp(min=LOG_ZERO)
    return picked.new_zeros(scored.shape).masked_scatter(scored, picked).reshape(count, width, length)
