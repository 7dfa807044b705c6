"""Likelihoods of segments: the tokens committed between two states, scored in masked copies of the completion.

A segment of the selection stands for the steps from ``step`` up to, not including, ``end``: one denoising step,
several, or the whole completion. A segment likelihood says in which copies of the completion which positions are masked
and which are scored; all copies of all segments go through the policy as one flat batch. Random masks are a function of
each sample's seed: the shape of a batch never changes a mask, and the old, the new and the reference policy see the
same ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    ITERATION,
    PROMPT_IDS,
    PROMPT_MASK,
    SEED,
    SELECTED_END,
    SELECTED_LOG_PROB,
    SELECTED_STEP,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
    Key,
)
from dlmrl_kit.core.policy import Policy, Vocabulary, completion_features, log_probs_of
from dlmrl_kit.core.seeding import combine_seeds, uniforms
from dlmrl_kit.core.validate import check
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.samplers.base import Sampler


@dataclass(frozen=True)
class Segments:
    """The R segments of weight > 0 of a batch, flat, in row-major order.

    Attributes:
        prompt_ids, prompt_mask: int64 and bool [R, P].
        tokens: int64 [R, L], the final ones.
        commit_step: int64 [R, L].
        start, end: int64 [R], the first step, and the first one behind the segment.
        counted: bool [R, L], positions that may be scored at all.
        draw: int64 [R], the number of the segment in its row, in 0 .. ``draws`` - 1.
        draws: K.
        sample_seed: int64 [R], the same for the segments of a sample.
        used: bool [B, K], where the segments come from.
        batch: the TensorDict [B] that they come from.
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
    used: Tensor
    batch: TensorDictBase

    @property
    def masked(self) -> Tensor:
        """Positions that are masked in the state at the start of the segment: bool [R, L]."""
        return self.commit_step >= self.start[:, None]

    @property
    def targets(self) -> Tensor:
        """Positions committed in the segment that count: bool [R, L]."""
        return self.masked & (self.commit_step < self.end[:, None]) & self.counted

    def per_sample(self, key: Key) -> Tensor:
        """Returns a key [B, ...] of the batch for each of the segments: [R, ...]."""
        return self.batch[key][self.used.nonzero(as_tuple=True)[0]]

    def per_segment(self, key: Key) -> Tensor:
        """Returns a key [B, K, ...] of the batch for each of the segments: [R, ...]."""
        return self.batch[key][self.used]

    def uniforms(self, purpose: str, *shape: int) -> Tensor:
        """Draws uniform numbers in [0, 1) for each segment alone: float64 [R, *shape]."""
        return uniforms(combine_seeds(self.sample_seed, self.draw), *shape, purpose=purpose)

    def shared_uniforms(self, purpose: str, *shape: int) -> Tensor:
        """Draws uniform numbers in [0, 1) that the segments of a sample share: float64 [R, *shape]."""
        return uniforms(self.sample_seed, *shape, purpose=purpose)

    def position_uniforms(self, purpose: str, copies: int = 1) -> Tensor:
        """Draws a number for every position in M copies of each segment: float64 [R, M, L], whatever L is."""
        return self.uniforms(purpose, self.tokens.shape[1], copies).mT

    def stratified_uniforms(self, purpose: str) -> Tensor:
        """Draws float64 [R]: for the K segments of a sample, one uniform number shifted by multiples of 1 / K."""
        return (self.shared_uniforms(purpose) + self.draw.double() / self.draws) % 1

    def scatter(self, values: Tensor) -> Tensor:
        """Puts values [R, ...] back into [B, K, ...], zeros elsewhere; differentiable."""
        out = values.new_zeros((*self.used.shape, *values.shape[1:]))
        return out.index_put(self.used.nonzero(as_tuple=True), values)


@dataclass(frozen=True)
class Copies:
    """M masked copies of each segment's completion.

    Attributes:
        masked: bool [R, M, L].
        scored: bool [R, M, L], positions to score, all of them masked.
        prompt_masked: bool [R, M, P], prompt tokens that are masked too; None: none is.
    """

    masked: Tensor
    scored: Tensor
    prompt_masked: Tensor | None = None


def counted_positions(completion_ids: Tensor, vocabulary: Vocabulary, after_eos: bool) -> Tensor:
    """Returns the positions up to the first end of text, itself included, or all of them: bool [B, L]."""
    if after_eos:
        return torch.ones_like(completion_ids, dtype=torch.bool)
    is_end = vocabulary.is_end(completion_ids).long()
    return is_end.cumsum(-1) - is_end == 0


def prompt_masks(segments: Segments, share: float, copies: int) -> Tensor | None:
    """Masks each prompt token with probability ``share`` in each of M copies: bool [R, M, P], or None for share 0."""
    if share == 0:
        return None
    width = segments.prompt_ids.shape[1]
    from_right = segments.uniforms("prompt mask", width, copies).flip(1).mT  # padding on the left changes no draw
    return (from_right < share) & segments.prompt_mask[:, None, :]


class SegmentLikelihood(Likelihood):
    """Base class of segment likelihoods: subclasses implement ``masks``, and ``weights`` where copies are weighted.

    Args:
        sampling_temperature: True scores with the sampler's behaviour distribution (temperature and filters); False
            with softmax(logits), as most released codes do whatever temperature they sampled at.
        after_eos: whether positions committed behind the first end of text are scored too. Positions that are not
            scored at all stay masked in every copy that is not a state of the trajectory.
        redraw: draw new random masks in each pass over a rollout (then also reads ``iteration``).

    Reads the trajectory, the selection with ``("selected", "end")``, and ``seed``. Writes ``("selected", "log_prob")``
    [B, K]; on demand ``("selected", "token_log_prob")``, ``("selected", "token_mask")`` [B, K, L] and
    ``("sequence", "length")`` int64 [B]. No sampler records these: they are computed under the old policy before the
    update.
    """

    optional_keys = (SELECTED_TOKEN_MASK, SELECTED_TOKEN_LOG_PROB, SEQUENCE_LENGTH)

    def __init__(self, sampling_temperature: bool = True, after_eos: bool = False, redraw: bool = False) -> None:
        super().__init__()
        self.sampling_temperature = sampling_temperature
        self.after_eos = after_eos
        self.redraw = redraw
        self.in_keys = [*self.in_keys, SELECTED_END, SEED, *(["iteration"] if redraw else [])]

    @abstractmethod
    def masks(self, segments: Segments) -> Copies:
        """Makes the masked copies of each segment."""

    def weights(self, copies: Copies, segments: Segments) -> Tensor:
        """Returns the weight of each copy, broadcastable to [R, M, L]; here 1."""
        return torch.ones_like(segments.start)[:, None, None]

    def combine(self, log_probs: Tensor, copies: Copies, segments: Segments) -> tuple[Tensor, Tensor]:
        """Combines the log-probabilities of the copies, [R, M, L], into those of segments and of their tokens.

        Returns:
            [R] and [R, L]; here the weighted sum over copies, and its sum over positions.
        """
        tokens = (log_probs * self.weights(copies, segments).to(log_probs.dtype)).sum(1)
        return tokens.sum(-1), tokens

    def token_mask(self, copies: Copies, segments: Segments) -> Tensor:
        """Returns which entries of the tokens' log-probabilities count: bool [R, L]."""
        return copies.scored.any(1)

    def prepare(
        self, tensordict: TensorDictBase, *, sampler: Sampler, policy: Policy, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds what was asked for and does not depend on the policy's weights: token mask and length."""
        if SELECTED_TOKEN_MASK in keys:
            segments = self.segments(tensordict, policy, sampler)  # masks depend on seeds: ``forward`` makes the same
            tensordict.set(SELECTED_TOKEN_MASK, segments.scatter(self.token_mask(self.masks(segments), segments)))
        if SEQUENCE_LENGTH in keys:
            tensordict.set(SEQUENCE_LENGTH, self.counted(tensordict, policy, sampler).sum(-1))
        return tensordict

    def counted(self, tensordict: TensorDictBase, policy: Policy, sampler: Sampler) -> Tensor:
        """Returns the positions that some segment may score: bool [B, L], those committed that count."""
        counted = counted_positions(tensordict[COMPLETION_IDS], policy, self.after_eos)
        # The padding behind a row that ended was never committed; its commit step is T.
        return counted & (tensordict[COMMIT_STEP] < sampler.num_steps(policy))

    def segments(self, tensordict: TensorDictBase, policy: Policy, sampler: Sampler) -> Segments:
        """Returns the used segments of a batch.

        Raises:
            RecipeError: the sampler does not fill masks.
        """
        if sampler.noise != "mask":
            raise RecipeError(
                f"{type(self).__name__} scores masked copies, but {type(sampler).__name__} denoises {sampler.noise} "
                "noise; a likelihood of single steps, such as StepLogProb, fits"
            )
        used = tensordict[SELECTED_WEIGHT] > 0
        row, column = used.nonzero(as_tuple=True)
        seed = tensordict[SEED]
        if self.redraw:
            seed = combine_seeds(seed, tensordict[ITERATION])
        return Segments(
            prompt_ids=tensordict[PROMPT_IDS][row],
            prompt_mask=tensordict[PROMPT_MASK][row],
            tokens=tensordict[COMPLETION_IDS][row],
            commit_step=tensordict[COMMIT_STEP][row].long(),
            start=tensordict[SELECTED_STEP][used],
            end=tensordict[SELECTED_END][used],
            counted=self.counted(tensordict, policy, sampler)[row],
            draw=column,
            draws=used.shape[1],
            sample_seed=seed[row],
            used=used,
            batch=tensordict,
        )

    def forward(
        self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds the log-probabilities, [B, K] and [B, K, L]; see ``Likelihood.forward``."""
        segments = self.segments(tensordict, policy, sampler)
        copies = self.masks(segments)
        log_probs = score(segments, copies, policy, sampler, self.sampling_temperature)
        total, tokens = self.combine(log_probs, copies, segments)
        tensordict.set(SELECTED_LOG_PROB, segments.scatter(total))
        if SELECTED_TOKEN_LOG_PROB in keys:
            tensordict.set(SELECTED_TOKEN_LOG_PROB, segments.scatter(tokens))
        return tensordict


class OneCopyLikelihood(SegmentLikelihood):
    """Base class of segment likelihoods with one copy, in which prompt tokens may be masked at random.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``.
        prompt_mask_share: probability with which each prompt token is masked, in [0, 1]; at 0 nothing is drawn, and
            there is nothing to redraw.

    Reads and writes as ``SegmentLikelihood``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        sampling_temperature: bool = True,
        after_eos: bool = False,
        redraw: bool = False,
        prompt_mask_share: float = 0.0,
    ) -> None:
        super().__init__(sampling_temperature, after_eos, redraw and prompt_mask_share > 0)
        check(0 <= prompt_mask_share <= 1, self, "prompt_mask_share", prompt_mask_share, "in [0, 1]")
        self.prompt_mask_share = prompt_mask_share
        self.random_masks = prompt_mask_share > 0

    def prompt_masks(self, segments: Segments) -> Tensor | None:
        """Masks prompt tokens in the one copy: bool [R, 1, P], or None."""
        return prompt_masks(segments, self.prompt_mask_share, 1)


def score(segments: Segments, copies: Copies, policy: Policy, sampler: Sampler, sampling_temperature: bool) -> Tensor:
    """Computes the log-probability of every scored token in every copy, 0 elsewhere: [R, M, L].

    All copies are one flat batch; those in which nothing is scored are left out.
    """
    row, copy = copies.scored.any(-1).nonzero(as_tuple=True)
    masked, scored, tokens = copies.masked[row, copy], copies.scored[row, copy], segments.tokens[row]
    prompt_ids = segments.prompt_ids[row]
    if copies.prompt_masked is not None:
        prompt_ids = prompt_ids.masked_fill(copies.prompt_masked[row, copy], policy.mask_id)
    ids = tokens.masked_fill(masked, policy.mask_id)
    features = completion_features(policy, prompt_ids, segments.prompt_mask[row], ids, scored)
    behaviour = sampler.behaviour if sampling_temperature else None
    picked = log_probs_of(policy, features, tokens[scored], behaviour)
    # Copies and positions are both in row-major order, so the flat scores are in the order of the mask.
    return picked.new_zeros(copies.scored.shape).masked_scatter(copies.scored, picked)
