"""The interface of samplers: they generate trajectories, and know the exact log-probability of each of their actions.

In every denoising step a sampler sees what the policy predicts (a ``View``) and commits positions with tokens (a
``Decision``). ``action_log_prob`` says how probable the decision was; likelihoods compute it again, with gradient. Both
depend on the state alone, so that a sampler can go on from any state, and a step that is computed again from a stored
trajectory is the step that was taken.

``samplers.mask`` has the base class for samplers that commit a position once, ``samplers.redrawing`` the one for those
that draw positions again.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.behaviour import (
    LOG_ZERO,
    Behaviour,
    Certainty,
    Process,
    behaviour_log_probs,
    by_rows,
    certainty,
    draw,
    forbid,
)
from dlmrl_kit.core.component import Component, Sizes, rebuilt
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.generation import Decoder
from dlmrl_kit.core.keys import GROUP, PROMPT_IDS, PROMPT_MASK, Key
from dlmrl_kit.core.policy import Policy, Vocabulary, completion_features
from dlmrl_kit.core.promises import like, per_row, promises
from dlmrl_kit.core.scan import Scan
from dlmrl_kit.core.seeding import uniforms_at
from dlmrl_kit.core.trajectory import on_device, on_host, places, taken
from dlmrl_kit.samplers.promised import canvas, completed, forks, one_each
from dlmrl_kit.samplers.settings import DecodingSettings, check_cache
from dlmrl_kit.step_schedules.base import StepSchedule

MayChoose = Callable[[TensorDictBase], Tensor]
"""Says which steps of an unfinished rollout the selector may still choose, bool [B, T]; see ``Sampler.forward``."""


@dataclass(frozen=True)
class View:
    """What a sampler sees in a state: predictions at the N positions that it may commit, in row-major order.

    Attributes:
        logits: [N, V], forbidden tokens at -inf.
        behaviour: how logits become the distribution that tokens are drawn from.
        allowed: bool [B, L], the N positions.
        features: [N, D], what the policy's head reads; None for samplers without ``needs_features``.
        offset: int64 [B], prompt tokens in the block in which the completion begins; None: no row has any.
        one_pass: see ``scan``.
    """

    logits: Tensor
    behaviour: Behaviour
    allowed: Tensor
    features: Tensor | None = None
    offset: Tensor | None = None
    one_pass: Scan | None = None

    @property
    def scan(self) -> Scan | None:
        """What one pass over these logits left, for this behaviour; None: there was none."""
        found = self.one_pass
        return found if found is not None and found.is_of(self.logits, self.behaviour) else None

    @cached_property
    def log_probs(self) -> Tensor:
        """Log-probabilities of the behaviour distribution, [N, V]."""
        return behaviour_log_probs(self.logits, self.behaviour)

    @cached_property
    def certainty(self) -> Certainty:
        """What the confidence of any token at the N positions is computed from; without gradient."""
        return certainty(self.logits) if self.scan is None else self.scan.certain

    def confidence(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """Returns the confidence of one token at each of the N positions, or at some, int64 [n]; no gradient."""
        logits = self.logits.detach()
        row = torch.arange(len(logits), device=logits.device) if at is None else at
        return self.certainty.at(row).confidence(logits[row, tokens])

    def draw(self, seed: Tensor, at: Tensor | None = None) -> Tensor:
        """Draws tokens from the behaviour distribution, each with the noise of its row's seed and its position.

        Args:
            seed: int64 [B], of the rows in this denoising step.
            at: bool [B, L], some of the N positions; None: all of them.

        Returns:
            int64 [N], or one for each position of ``at``. What is drawn at a position depends on no other position.
        """
        noise = uniforms_at(seed, *(self.index if at is None else places(at)), "token drawn")
        some = None if at is None else self.where(at)
        if self.scan is not None:
            return self.scan.draw(noise, some)
        return draw(self.logits if some is None else self.logits[some], self.behaviour, noise)

    @cached_property
    def index(self) -> tuple[Tensor, Tensor]:
        """Row and position of each of the N predictions: two int64 [N]."""
        return places(self.allowed)

    def where(self, some: Tensor, others: bool = False) -> Tensor:
        """Returns which of the N positions are ``some`` (bool [B, L]), or which are not: int64 [n]."""
        inside = on_host(some)[on_host(self.allowed)]
        return on_device((~inside if others else inside).nonzero().squeeze(-1), some.device)

    def narrow(self, allowed: Tensor) -> View:
        """Returns the view of ``allowed`` (bool [B, L]), which are some of its positions; itself if they are all."""
        inside = self.where(allowed)
        if len(inside) == len(self.logits):
            return self
        features = None if self.features is None else self.features[inside]
        return View(self.logits[inside], self.behaviour, allowed, features, self.offset)

    def at(self, rows: Tensor) -> View:
        """Returns the view of some rows, int64 [n] in ascending order; itself if they are all."""
        if len(rows) == len(self.allowed):
            return self
        some = torch.zeros(len(self.allowed), 1, dtype=torch.bool).index_fill(0, on_host(rows), True)
        seen = self.narrow(on_device(on_host(self.allowed) & some, rows.device))
        offset = None if seen.offset is None else seen.offset[rows]
        return replace(seen, allowed=taken(seen.allowed, rows), offset=offset)

    def dense(self, values: Tensor, fill: float) -> Tensor:
        """Puts values [N] at their positions in [B, L], and ``fill`` elsewhere."""
        return values.new_full(self.allowed.shape, fill).masked_scatter(self.allowed, values)

    def row_sum(self, values: Tensor, rows: Tensor) -> Tensor:
        """Sums values [n] by the rows that they belong to (int64 [n]): [B]."""
        return values.new_zeros(self.allowed.shape[0]).index_add(0, rows, values)


@dataclass(frozen=True)
class Decision:
    """An action: which positions are committed, and with which tokens.

    Attributes:
        committed: bool [B, L].
        tokens: int64 [B, L], read where committed.
        rank: int64 [B, L], order of the draw, for samplers whose action is an ordered draw.
        drawn: bool [B, L], where ``tokens`` holds a draw, for samplers that draw more tokens than they commit.
    """

    committed: Tensor
    tokens: Tensor
    rank: Tensor | None = None
    drawn: Tensor | None = None

    def at(self, rows: slice) -> Decision:
        """Returns the decisions of some rows."""
        return Decision(*(None if part is None else part[rows] for part in vars(self).values()))  # type: ignore[arg-type]


def token_log_probs(view: View, decision: Decision) -> tuple[Tensor, Tensor]:
    """Returns the behaviour log-probability of each committed token, [n], and its row, int64 [n]."""
    row, position = places(decision.committed)
    if view.scan is not None:
        found = view.scan.log_probs(decision.tokens[row, position], view.where(decision.committed))
        return found.clamp(min=LOG_ZERO), row

    def pick(logits: Tensor, tokens: Tensor) -> Tensor:
        return behaviour_log_probs(logits, view.behaviour).gather(-1, tokens[:, None]).squeeze(-1)

    picked = by_rows(pick, view.logits, decision.tokens[row, position], at=view.where(decision.committed))
    return picked.clamp(min=LOG_ZERO), row


def token_log_prob(view: View, decision: Decision) -> Tensor:
    """Returns the token part of the action's log-probability: log p(token), summed over committed positions, [B]."""
    return view.row_sum(*token_log_probs(view, decision))


class Sampler(DecodingSettings, Decoder, ABC):
    """Base class of samplers.

    Args:
        completion_length: L, number of positions to fill.
        block_length: positions are committed block by block, left to right (semi-autoregressive); None means one block.
        temperature: of the behaviour distribution; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens up to this mass; 1 keeps all.
        stop_at_eos: a row ends once its text up to the first token that ends it is complete; the rest is padded.

    Reads ``prompt_ids``, ``prompt_mask``, ``seed``; writes ``completion_ids``, ``commit_step`` and the ``step`` keys.

    Raises:
        ValueError: a value out of range.
    """

    requires: ClassVar[tuple[str, ...]] = ("policy",)
    always_given: ClassVar[tuple[str, ...]] = ("keys", "cache", "may_choose")
    noise: ClassVar[Literal["mask", "uniform"]] = "mask"
    """What positions hold that are still open; see ``Policy.noise``."""
    needs_features: ClassVar[bool] = False
    """Whether it reads ``View.features``."""
    tokens_per_step: int | StepSchedule = 1
    """How many positions a step commits, in samplers that have this setting."""
    group_size: int | None = None
    """How many samples of a prompt are made together; None: each is made by itself."""

    def resized(self, before: Sizes, after: Sizes) -> Sampler:
        """Returns a sampler of its kind for completions of ``after.length``; the number of steps follows from it."""
        return rebuilt(self, **self.fitted(before, after))

    def recorded_keys(self, keys: Collection[Key]) -> tuple[Key, ...]:
        """Returns what a rollout records: ``out_keys`` and the on-demand ``keys``.

        Raises:
            ValueError: a key that this sampler cannot write.
        """
        unknown = [key for key in keys if key not in self.optional_keys]
        if unknown:
            raise ValueError(f"{type(self).__name__} cannot write {unknown}; on demand it writes {self.optional_keys}")
        return (*self.out_keys, *keys)

    @promises(forks)
    def last_fork(self, trajectory: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Says from where on the samples of a group are independent of each other; where they share steps, override it.

        Args:
            trajectory: [B], a rollout.

        Returns:
            The first step that each sample takes by itself, int64 [B], and a number of the state in which it does so,
            int64 [B]: samples with the same one start from the same state. By default step 0, and the group.
        """
        return torch.zeros_like(trajectory[GROUP]), trajectory[GROUP]

    def exact_advantage(self) -> Component | None:
        """Returns an advantage that leaves the gradient unbiased, for the audit; None: ``LeaveOneOut``.

        Where samples of a group share steps, the rewards of the others are no baseline.
        """
        return None

    def attach(self, policy: Policy) -> None:
        """Checks that this sampler can decode from the policy.

        Raises:
            UserError: it fills masks and the policy has none, or its blocks are not whole blocks of the policy's.
        """
        name, size = type(self).__name__, policy.block_size
        if policy.noise not in ("mask", self.noise):
            raise UserError(
                f"{name} fills masks, but this model has none: it denoises {policy.noise} noise; take a sampler that "
                "does, such as EntropyBoundRenoising"
            )
        if size is not None and self.block_length % size:
            raise UserError(
                f"{name}.block_length is {self.block_length}, but the model denoises in blocks of {size}: set "
                f"{name}.block_length = {size}, or a multiple of it"
            )

    @abstractmethod
    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        policy: Policy,
        keys: Collection[Key] = (),
        cache: Cache | None = None,
        may_choose: MayChoose | None = None,
    ) -> TensorDictBase:
        """Generates a completion for every row, from fully masked.

        Args:
            tensordict: [B], holds ``in_keys``; the written keys are added to it. All noise of a row comes from its
                ``seed``: other rows, their order, and how a batch is cut do not change its completion.
            policy: a service.
            keys: on-demand keys to write.
            cache: what the policy may reuse of earlier steps, which makes it approximate; None: it reuses nothing.
            may_choose: picks the steps for which ``("step", "greedy_ids")`` is computed; None: every step.

        Raises:
            UserError: ``seed`` is missing.
        """

    @promises(completed)
    def decode(self, prompt: TensorDictBase, *, policy: Policy) -> dict[Key, Tensor]:
        """Completes each row by itself, from fully masked, even if ``forward`` makes groups together; as ``resume``."""
        return self.resume(prompt, self.fully_masked(prompt, policy), policy=policy)

    @abstractmethod
    @promises(completed)
    def resume(self, prompt: TensorDictBase, ids: Tensor, *, policy: Policy) -> dict[Key, Tensor]:
        """Completes partially decoded sequences.

        Args:
            prompt: [B], holds ``prompt_ids``, ``prompt_mask``, ``seed``, and what ``core.trajectory.canvas_state``
                gives.
            ids: int64 [B, L], masked where nothing is drawn yet; steps are counted from this state.
            policy: a service.

        Returns:
            The keys of ``out_keys``. Positions that were not open get ``commit_step`` -1.

        Raises:
            UserError: ``seed`` is missing.
        """

    @abstractmethod
    @promises(one_each)
    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Returns the exact log-probability [B] of ``decision`` in the states of ``view``, with gradient."""

    @promises(like("bool", "ids"))
    def asked_positions(self, policy: Policy, prompt: TensorDictBase, ids: Tensor) -> Tensor:
        """Returns the positions whose predictions the log-probability of a step is computed from: bool [B, L].

        Args:
            policy: the denoiser.
            prompt: [B], as ``likelihoods.steps.Replay.prompt``.
            ids: int64 [B, L], the states.
        """
        return self.allowed(ids == policy.mask_id, policy.block_offset(prompt[PROMPT_MASK]))

    def processing(self, prompt: TensorDictBase, positions: Tensor) -> Process | None:
        """Returns what this sampler does to the logits of steps that were taken, before its behaviour distribution.

        Args:
            prompt: [B], as ``likelihoods.steps.Replay.prompt``.
            positions: bool [B, L], the N positions of the logits.

        Returns:
            A function of logits [n, V], forbidden tokens at -inf, and the slice of the N positions that they belong to;
            None: logits are used as they are.
        """
        return None

    def seen(self, policy: Policy, features: Tensor, positions: Tensor, prompt: TensorDictBase) -> View:
        """Returns the view at ``positions`` (bool [B, L]); the policy's head makes its logits of features [N, D].

        What a sampler does to logits belongs into ``processing``, which rollouts that go another way ask, too.
        """
        logits, process = forbid(policy.head(features), policy.forbidden_ids), self.processing(prompt, positions)
        if process is not None:
            logits = process(logits, slice(None))
        offset = policy.block_offset(prompt[PROMPT_MASK])
        return View(logits, self.behaviour, positions, features if self.needs_features else None, offset)

    def view(self, policy: Policy, prompt: TensorDictBase, ids: Tensor, positions: Tensor | None = None) -> View:
        """Runs the policy on states ``ids`` [B, L]; returns the view at ``positions``, or at ``asked_positions``."""
        if positions is None:
            positions = self.asked_positions(policy, prompt, ids)
        features = completion_features(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], ids, positions)
        return self.seen(policy, features, positions, prompt)

    @promises(like("bool", "still_open"))
    def allowed(self, still_open: Tensor, offset: Tensor | None = None) -> Tensor:
        """Returns the positions that may be committed: those open in the block of the first open one, bool [B, L].

        Args:
            still_open: bool [B, L].
            offset: int64 [B], prompt tokens in the block in which the completion begins (``Policy.block_offset``).
        """
        position = torch.arange(still_open.shape[1], device=still_open.device).expand_as(still_open)
        block = (position if offset is None else position + offset[:, None]) // self.block_length
        return still_open & (block == block.gather(1, still_open.long().argmax(-1, keepdim=True)))

    @promises(per_row("bool", "ids"))
    def running(self, ids: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Returns which rows of states ``ids`` [B, L] are not finished: bool [B]."""
        masked = ids == vocabulary.mask_id
        return (masked & vocabulary.before_end(ids) if self.stop_at_eos else masked).any(-1)

    @promises(canvas)
    def fully_masked(self, prompt: TensorDictBase, policy: Policy) -> Tensor:
        """Returns x_0 of every row: int64 [B, L]."""
        shape = (prompt.shape[0], self.completion_length)
        return torch.full(shape, policy.mask_id, dtype=torch.int64, device=prompt[PROMPT_IDS].device)

    @contextlib.contextmanager
    def rolling_out(self, policy: Policy, cache: Cache | None = None) -> Iterator[None]:
        """Within the context a rollout runs: no gradients, an adapter merged into the weights, ``sampling_from``."""
        with policy.merged(), torch.inference_mode(), self.sampling_from(policy, cache):
            yield

    def sampling_from(self, policy: Policy, cache: Cache | None) -> contextlib.AbstractContextManager[None]:
        """Within the context and without gradients, the policy is the one that rollouts with ``cache`` sample from.

        With a cache that is another distribution than the policy's. Without one only what is exact is reused.

        Raises:
            UserError: the cache is not for this sampler or policy.
        """
        if cache is None:
            return policy.prefix_cache()
        check_cache(self, policy, cache)
        return policy.cached(cache.window(policy, self.completion_length, self.block_length))
