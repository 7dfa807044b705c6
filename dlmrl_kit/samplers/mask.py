"""Samplers that fill masks: the denoising loop.

A subclass says how a step is drawn (``decide``) and how probable that was (``action_log_prob``). The loop predicts
every state once, calls both, and records what they did.
"""

from __future__ import annotations

import bisect
import itertools
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.behaviour import by_rows
from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import (
    PROMPT_IDS,
    PROMPT_MASK,
    STEP_DRAFT_IDS,
    STEP_GREEDY_IDS,
    STEP_MARGIN,
    STEP_MODEL_ENTROPY,
    STEP_MODEL_LOG_PROB,
    STEP_TOKEN_LOG_PROB,
    TOKEN_LOG_PROB,
    TOKEN_MODEL_LOG_PROB,
    Key,
)
from dlmrl_kit.core.policy import Policy, completion_features, most_predictions
from dlmrl_kit.core.promises import Given, promises, shown, tensor_fault
from dlmrl_kit.core.seeding import combine_seeds, seeds_of
from dlmrl_kit.core.trajectory import bring, on_device, on_host, rows_of, taken
from dlmrl_kit.samplers.base import Decision, MayChoose, Sampler, View, token_log_prob
from dlmrl_kit.samplers.promised import counts, places, scored
from dlmrl_kit.samplers.recorder import MaskRecorder, Predicted, Rows
from dlmrl_kit.samplers.settings import check_tokens_per_step
from dlmrl_kit.step_schedules.base import StepSchedule


def _decided(result: object, given: Given) -> str:
    if not isinstance(result, Decision):
        return f"{shown(result)}; it should be a Decision"
    allowed = given["view"].allowed
    forms = {"committed": "bool", "tokens": "int64", "rank": "int64", "drawn": "bool"}
    parts = {name: part for name, part in vars(result).items() if part is not None or name in ("committed", "tokens")}
    faults = (
        tensor_fault(part, forms[name], allowed.shape, device=allowed.device, name=name) for name, part in parts.items()
    )
    return next(filter(None, faults), "")


class MaskSampler(Sampler):
    """Base class of samplers that fill masks. Subclasses implement ``decide`` and ``action_log_prob``.

    Args:
        completion_length: L, number of positions to fill.
        tokens_per_step: positions committed per step, and the last step of a block commits what is left; or a step
            schedule, which says it for each step of a block.
        block_length, temperature, top_k, top_p, stop_at_eos: as ``Sampler``.

    Raises:
        ValueError: a value out of range.
    """

    optional_keys: ClassVar[tuple[Key, ...]] = (
        STEP_TOKEN_LOG_PROB,
        STEP_MODEL_LOG_PROB,
        STEP_MODEL_ENTROPY,
        STEP_MARGIN,
        STEP_GREEDY_IDS,
        STEP_DRAFT_IDS,
        TOKEN_LOG_PROB,
        TOKEN_MODEL_LOG_PROB,
    )

    def __init__(
        self,
        completion_length: int,
        tokens_per_step: int | StepSchedule = 1,
        block_length: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_at_eos: bool = True,
    ) -> None:
        super().__init__(completion_length, block_length, temperature, top_k, top_p, stop_at_eos)
        check_tokens_per_step(self, tokens_per_step)
        self.tokens_per_step = tokens_per_step
        self._levels = [] if isinstance(tokens_per_step, int) else tokens_per_step.levels(self.block_length)

    @property
    def max_steps(self) -> int:
        """T: the sum of ``block_steps`` over the blocks."""
        return self._steps(self.block_length)

    def num_steps(self, policy: Policy) -> int:
        """Returns the largest T over all places in a block of the policy's at which a completion may begin."""
        if policy.block_offset(torch.ones(1, 1, dtype=torch.bool)) is None:
            return self.max_steps
        return max(self._steps(first) for first in range(1, self.block_length + 1))

    def _steps(self, first: int) -> int:
        """Returns the number of steps of a completion with ``first`` positions in its first block."""
        full, last = divmod(self.completion_length - first, self.block_length)
        return self.block_steps(first) + full * self.block_steps(self.block_length) + self.block_steps(last)

    def block_steps(self, positions: int) -> int:
        """Returns ceil(positions / tokens_per_step); with a schedule, how many of its steps begin before the end."""
        if isinstance(self.tokens_per_step, int):
            return -(-positions // self.tokens_per_step)
        return sum(level < positions for level in (0, *self._levels))

    @property
    def max_commits(self) -> int:
        """C: an upper bound on the positions that a step commits."""
        if isinstance(self.tokens_per_step, int):
            return min(self.tokens_per_step, self.block_length)
        return max(level - before for before, level in itertools.pairwise((0, *self._levels)))

    def resized(self, before: Sizes, after: Sizes) -> Sampler:
        """Returns a sampler of its kind for completions of ``after.length``, with ``after.tokens_per_step``."""
        per_step, to = self.tokens_per_step, replace(after, block_length=min(after.block_length, after.length))
        number = to.tokens_per_step if isinstance(per_step, int) else per_step.resized(before, to)
        return rebuilt(self, **self.fitted(before, after), tokens_per_step=number)

    @abstractmethod
    @promises(_decided)
    def decide(self, view: View, seed: Tensor) -> Decision:
        """Draws an action in the states of ``view``.

        Args:
            view: what the policy predicts in B states.
            seed: int64 [B], of each row in this denoising step: all noise is made of it, by ``View.draw`` or
                ``core.seeding.uniforms``, so that what a row draws depends on no other row.
        """

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists every choice of positions that ``decide`` can make in the states of ``view``; the audit needs them all.

        Returns:
            Pairs of positions (bool [B, L]) and order of the draw (int64 [B, L], or None where the action has none). A
            row in which a choice is not possible has no position in it. Choices of probability 0 may be among them.

        Raises:
            NotImplementedError: this sampler does not list its choices.
        """
        raise NotImplementedError(f"{type(self).__name__} does not list its choices of positions (position_choices)")

    @promises(counts)
    def num_commits(self, view: View) -> Tensor:
        """Returns how many positions a step commits in each row: int64 [B].

        By a schedule, it goes on to the next number of committed positions that the schedule has for the block.
        """
        still_open = view.allowed.sum(-1)
        if isinstance(self.tokens_per_step, int):
            return still_open.clamp(max=self.tokens_per_step)
        done = self._block_positions(view) - still_open
        levels = torch.tensor(self._levels).to(done.device, non_blocking=True)
        return torch.minimum(levels[torch.searchsorted(levels, done, right=True)] - done, still_open)

    def _block_positions(self, view: View) -> Tensor:
        """Returns how many positions of the completion are in the block of each row: int64 [B]."""
        offset = 0 if view.offset is None else view.offset
        first = view.allowed.long().argmax(-1)
        begin = (first + offset) // self.block_length * self.block_length - offset
        return (begin + self.block_length).clamp(max=view.allowed.shape[1]) - begin.clamp(min=0)

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        policy: Policy,
        keys: Collection[Key] = (),
        cache: Cache | None = None,
        may_choose: MayChoose | None = None,
    ) -> TensorDictBase:
        """Generates a completion for every row, from fully masked; see ``Sampler.forward``."""
        self.attach(policy)
        with self.rolling_out(policy, cache):
            ids = self.fully_masked(tensordict, policy)
            recorder = MaskRecorder(policy, ids, self.num_steps(policy), self.recorded_keys(keys), may_choose)
            self.advance(range(recorder.num_steps), tensordict, recorder, policy)
            written = recorder.finish()
        return tensordict.update({key: value.clone() for key, value in written.items()})

    def resume(self, prompt: TensorDictBase, ids: Tensor, *, policy: Policy) -> dict[Key, Tensor]:
        """Completes partially masked sequences, without a cache; see ``Sampler.resume``."""
        self.attach(policy)
        with self.rolling_out(policy):
            recorder = MaskRecorder(policy, ids, self.num_steps(policy), self.out_keys)
            self.advance(range(recorder.num_steps), prompt, recorder, policy)
            written = recorder.finish()
        return {key: value.clone() for key, value in written.items()}

    def advance(self, steps: range, prompt: TensorDictBase, recorder: MaskRecorder, policy: Policy) -> None:
        """Takes the denoising steps ``steps`` with those rows of ``recorder`` that are not finished."""
        seed = seeds_of(prompt, self)
        for step in steps:
            found = self.running(on_host(recorder.ids), policy).nonzero().squeeze(-1)
            if len(found) == 0:
                break
            rows = on_device(found, seed.device)
            self._step(step, rows, rows_of(prompt, rows), combine_seeds(seed[rows], step), recorder, policy)

    def _step(
        self,
        step: int,
        rows: Tensor,
        prompt: TensorDictBase,
        seed: Tensor,
        recorder: MaskRecorder,
        policy: Policy,
    ) -> None:
        """Takes a denoising step of ``rows``: predicts, then decides and records in pieces that fit in memory."""
        predicted = self.predict(rows, prompt, seed, taken(recorder.ids, rows), recorder, policy)
        self.act(step, predicted, recorder, policy)

    def predict(
        self,
        numbers: Tensor,
        prompt: TensorDictBase,
        seed: Tensor,
        ids: Tensor,
        recorder: MaskRecorder,
        policy: Policy,
    ) -> Predicted:
        """Runs the policy's body on states; arguments as in ``Rows``, and the recorder says what is to be recorded."""
        masked, device = on_host(ids) == policy.mask_id, ids.device
        offset = policy.block_offset(on_host(prompt[PROMPT_MASK]))
        allowed = self.allowed(masked, offset)
        greedy, draft = recorder.wants(STEP_GREEDY_IDS), recorder.wants(STEP_DRAFT_IDS)
        # Greedy completions need the best tokens behind the block too. A policy that denoises block by block would run
        # whole blocks for nothing else: it is run again, later, on the states that the selector may choose.
        later = greedy and not draft and offset is not None and recorder.may_choose is not None
        asked = masked if (greedy or draft) and not later else allowed
        features = completion_features(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], ids, on_device(asked, device))
        behind: Tensor | TensorDictBase = prompt.select(PROMPT_IDS, PROMPT_MASK) if later else features[:0]
        if greedy and not draft and not later:  # behind the block features wait, and the head with them
            inside = allowed[asked]
            here, there = (on_device(some.nonzero().squeeze(-1), device) for some in (inside, ~inside))
            features, behind, asked = features[here], features[there], allowed
        rows = Rows(numbers, prompt, seed, ids, on_device(asked, device), on_device(allowed, device))
        return Predicted(rows, features, masked & ~allowed, behind)

    def act(
        self,
        step: int | Tensor,
        predicted: Predicted,
        recorder: MaskRecorder,
        policy: Policy,
        then: Callable[[Rows, View], None] | None = None,
    ) -> None:
        """Decides and records a step in pieces that fit in memory.

        Args:
            step: of all rows, or int64 [R].
            predicted: of the rows.
            recorder, policy: those of the rollout.
            then: called with the rows of each piece and their view, whose logits are gone afterwards.
        """
        rows, features = predicted.rows, predicted.features
        asked, allowed = on_host(rows.asked), on_host(rows.allowed)
        held = asked.sum(-1) if rows.asked is rows.allowed else asked.sum(-1) + allowed.sum(-1)  # narrowing copies
        for part, place in logit_pieces(asked.sum(-1), policy.vocab_size, features.device, held):
            some = rows if part == slice(0, len(rows.numbers)) else rows.part(part)
            self._take(step if isinstance(step, int) else step[part], some, features[place], recorder, policy, then)
        if len(predicted.source):
            behind = on_device(predicted.behind, features.device)
            recorder.greedy_behind(step, rows.numbers, behind, predicted.source)

    def seen_in_rollout(self, policy: Policy, features: Tensor, some: Rows, recorder: MaskRecorder) -> View:
        """Returns the view of a step that is being taken: ``seen``, or the same in less time."""
        return self.seen(policy, features, some.asked, some.prompt)

    def _take(
        self,
        step: int | Tensor,
        some: Rows,
        features: Tensor,
        recorder: MaskRecorder,
        policy: Policy,
        then: Callable[[Rows, View], None] | None,
    ) -> None:
        """Takes the step in some rows, whose logits are gone before those of the next rows are computed."""
        predicted = self.seen_in_rollout(policy, features, some, recorder)
        if recorder.wants(STEP_GREEDY_IDS):
            scan = predicted.scan
            best = by_rows(lambda logits: logits.argmax(-1), predicted.logits) if scan is None else scan.best()
            recorder.put(STEP_GREEDY_IDS, step, some.numbers, some.ids.masked_scatter(some.asked, best))
        view = predicted.narrow(some.allowed)
        decision = self.decide(view, some.seed)
        bring(decision.committed, decision.tokens)
        if recorder.wants(STEP_DRAFT_IDS):
            recorder.put(STEP_DRAFT_IDS, step, some.numbers, drafted(some.ids, predicted, decision, some.seed))
        recorder.step(step, some.numbers, view, decision, self.action_log_prob(view, decision))
        if then is not None:
            then(some, view)


def logit_pieces(
    count: Tensor, vocab: int, device: torch.device, held: Tensor | None = None
) -> Iterator[tuple[slice, slice]]:
    """Cuts a batch into rows whose logits stay below ``core.policy.LOGITS_BYTES``, at least one row at a time.

    Args:
        count: int64 [B], predictions of each row.
        vocab: V.
        device: where the logits are.
        held: int64 [B], predictions of each row that are in memory at once, copies included; None: ``count``.

    Yields:
        The rows, and the slice of all predictions that are theirs.
    """
    most = most_predictions(vocab, device)
    ends = [0, *count.cumsum(0).tolist()]
    held_ends = ends if held is None else [0, *held.cumsum(0).tolist()]
    row = 0
    while row < len(count):
        stop = max(bisect.bisect_right(held_ends, held_ends[row] + most) - 1, row + 1)
        yield slice(row, stop), slice(ends[row], ends[stop])
        row = stop


def draw_tokens(view: View, committed: Tensor, seed: Tensor) -> Tensor:
    """Draws tokens at the committed positions, as ``View.draw``, 0 elsewhere: int64 [B, L]."""
    return torch.zeros_like(committed, dtype=torch.int64).masked_scatter(committed, view.draw(seed, committed))


def drafted(ids: Tensor, view: View, decision: Decision, seed: Tensor) -> Tensor:
    """Fills every masked position of the states ``ids`` with a draw: int64 [B, L].

    Args:
        ids: int64 [B, L].
        view: predictions at all masked positions.
        decision: the draws of the step, which are kept; elsewhere tokens are drawn from the behaviour distribution.
        seed: int64 [B], as ``MaskSampler.decide`` got it.
    """
    drawn = decision.committed if decision.drawn is None else decision.drawn
    rest = on_device(on_host(view.allowed) & ~on_host(drawn), ids.device)
    return torch.where(drawn, decision.tokens, ids).masked_scatter(rest, view.draw(seed, rest))


def highest(scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Returns the places of the ``count`` [B] highest scores in ``allowed``, bool [B, L]; ties go to the lower one."""
    return (rank_of(scores, allowed) < count[:, None]) & allowed


def rank_of(scores: Tensor, allowed: Tensor) -> Tensor:
    """Ranks the scores of each row, 0 the highest: int64 [B, L]; allowed positions come first, ties in order."""
    floor = torch.finfo(scores.dtype).min
    scores = scores.clamp(min=floor).masked_fill(~allowed, -torch.inf)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


class StateScoreSampler(MaskSampler):
    """Base class of samplers that choose positions by a score of the state alone, then draw their tokens.

    The choice does not depend on the tokens drawn, so the exact log-probability is the token part. Subclasses implement
    ``scores``, or ``committed``.
    """

    implemented: ClassVar[tuple[str, ...]] = ("scores", "committed", "decide")

    @promises(scored)
    def scores(self, view: View) -> Tensor:
        """Scores each of the N positions, [N]; the highest are committed."""
        raise NotImplementedError

    @promises(places)
    def committed(self, view: View) -> Tensor:
        """Chooses the positions to commit: bool [B, L]."""
        return highest(view.dense(self.scores(view), -torch.inf), view.allowed, self.num_commits(view))

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists the one choice that the state makes."""
        return [(self.committed(view), None)]

    def decide(self, view: View, seed: Tensor) -> Decision:
        """Chooses positions by score, then draws their tokens from the behaviour distribution."""
        committed = self.committed(view)
        return Decision(committed, draw_tokens(view, committed, seed))

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Sums log p(token) over the committed positions: [B]."""
        return token_log_prob(view, decision)
