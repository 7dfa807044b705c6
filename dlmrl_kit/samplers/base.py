"""Samplers: the denoising loop, and the exact log-probability of the action taken in each step.

A sampler is defined by two functions of what the policy predicts in a state (a ``View``): ``decide`` draws which
positions are committed with which tokens, ``action_log_prob`` gives the probability of such a decision. The loop here
calls both; the likelihood estimators call the second with gradients. Everything depends on the state alone, so a
sampler can resume from any state, and a step recomputed from a stored trajectory is the step that was taken.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.behaviour import (
    Behaviour,
    by_rows,
    draw,
    forbid,
)
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    STEP_DRAFT_IDS,
    STEP_ENTROPY,
    STEP_GREEDY_IDS,
    STEP_LOG_PROB,
    STEP_NUM_COMMITTED,
    STEP_VALID,
    Key,
)
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.base import Policy, completion_features, completion_logits, head_logits
from dlmrl_kit.samplers.blocks import block_offset, check_blocks, most_steps, prefix_cache
from dlmrl_kit.samplers.parts import merged, parts
from dlmrl_kit.samplers.recorder import OPTIONAL_KEYS, Recorder
from dlmrl_kit.samplers.view import Decision, View, highest, token_log_prob


class Rows(NamedTuple):
    """Rows of a step: their numbers int64 [R] and states int64 [R, L]; where predictions are wanted and positions may
    be committed, bool [R, L].
    """

    numbers: Tensor
    ids: Tensor
    asked: Tensor
    allowed: Tensor


class Sampler(Component):
    """Base class of samplers; see the module docstring.

    Args:
        completion_length: L, number of positions to fill.
        tokens_per_step: positions committed per step; the last step of a block commits what is left.
        block_length: positions are committed block by block, left to right (semi-autoregressive); None means one block.
        temperature: of the behaviour distribution; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens up to this mass; 1 keeps all.
        stop_at_eos: a row ends once its text up to the first end-of-text token is complete; the rest is padded.

    Reads ``prompt_ids``, ``prompt_mask``; writes ``completion_ids``, ``commit_step`` and the ``step`` keys.

    Raises:
        ValueError: a value out of range.
    """

    requires: ClassVar[tuple[str, ...]] = ("policy", "generator")
    optional_keys: ClassVar[tuple[Key, ...]] = OPTIONAL_KEYS
    noise: ClassVar[str] = "mask"
    """What open positions hold; see ``Policy.noise``."""

    needs_features: ClassVar[bool] = False
    """Whether it reads ``View.features``."""

    records_tokens: ClassVar[bool] = True
    """Whether a position is committed once, so that its log-probability can be kept per position."""

    cache: Cache | None = None
    """What a rollout takes over from earlier steps, approximately (``dlmrl_kit.caches``); None: nothing."""

    may_choose: Callable[[TensorDictBase], Tensor] | None = None
    """``kept`` of a nested selector whose steps alone need ``("step", "greedy_ids")``; None: every step does."""

    begins_anywhere = False
    """Whether completions may begin inside a block of the policy that was attached."""

    def __init__(
        self,
        completion_length: int,
        tokens_per_step: int = 1,
        block_length: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_at_eos: bool = True,
    ) -> None:
        super().__init__()
        check(completion_length >= 1, self, "completion_length", completion_length, "at least 1")
        check(tokens_per_step >= 1, self, "tokens_per_step", tokens_per_step, "at least 1")
        check(block_length is None or block_length >= 1, self, "block_length", block_length, "at least 1, or None")
        check(0 <= temperature < math.inf, self, "temperature", temperature, "at least 0 and finite")
        check(top_k >= 0, self, "top_k", top_k, "at least 0 (0 keeps every token)")
        check(0 < top_p <= 1, self, "top_p", top_p, "in (0, 1]")
        self.completion_length = completion_length
        self.tokens_per_step = tokens_per_step
        self.block_length = min(block_length or completion_length, completion_length)
        self.stop_at_eos = stop_at_eos
        self.behaviour = Behaviour(temperature, top_k, top_p)
        self.in_keys = [PROMPT_IDS, PROMPT_MASK]
        self.out_keys = [
            COMPLETION_IDS,
            COMMIT_STEP,
            STEP_VALID,
            STEP_LOG_PROB,
            STEP_ENTROPY,
            STEP_NUM_COMMITTED,
        ]

    @property
    def max_steps(self) -> int:
        """T: an upper bound on the number of denoising steps of a completion."""
        return most_steps(self.completion_length, self.block_length, self.tokens_per_step, self.begins_anywhere)

    @property
    def max_commits(self) -> int:
        """C: an upper bound on the positions a step commits."""
        return min(self.tokens_per_step, self.block_length)

    @property
    def group_size(self) -> int | None:
        """Samples of each prompt, for samplers that make them together; None: any number."""
        return None

    def attach(self, policy: Policy) -> None:
        """Checks that this sampler can decode from the policy.

        Raises:
            UserError: it cannot.
        """
        check_blocks(self, policy)
        self.begins_anywhere = block_offset(policy, torch.ones(1, 1, dtype=torch.bool)) is not None

    def decide(self, view: View, generator: torch.Generator | None) -> Decision:
        """Draws an action in the states of ``view``."""
        raise NotImplementedError

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Exact log-probability [B] of ``decision`` in the states of ``view``, with gradient."""
        raise NotImplementedError

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Every choice of positions that ``decide`` can make in the states of ``view``; used to list all trajectories.

        Returns:
            Pairs of positions (bool [B, L]) and order of the draw (int64 [B, L], or None where the action has none). A
            row in which a choice is not possible has no position in it. Choices of probability 0 may be among them.

        Raises:
            NotImplementedError: this sampler does not list its choices.
        """
        raise NotImplementedError(f"{type(self).__name__} does not list its choices of positions (position_choices)")

    def allowed(self, masked: Tensor, offset: Tensor | None = None) -> Tensor:
        """Positions that may be committed: the masked ones of the block of the first masked one, bool [B, L].

        Args:
            masked: bool [B, L].
            offset: int64 [B], prompt tokens in the block in which the completion begins (``Policy.block_offset``).
        """
        position = torch.arange(masked.shape[1], device=masked.device).expand_as(masked)
        block = (position if offset is None else position + offset[:, None]) // self.block_length
        return masked & (block == block.gather(1, masked.long().argmax(-1, keepdim=True)))

    def num_commits(self, view: View) -> Tensor:
        """Positions a step commits in each row: int64 [B]."""
        return view.allowed.sum(-1).clamp(max=self.tokens_per_step)

    def running(self, ids: Tensor, policy: Policy) -> Tensor:
        """Rows of ids [B, L] that are not finished: bool [B]."""
        masked = ids == policy.mask_id
        if not self.stop_at_eos or policy.eos_id is None:
            return masked.any(-1)
        eos = ids == policy.eos_id
        before_eos = eos.long().cumsum(-1) == 0
        return (masked & before_eos).any(-1)

    def view(self, policy: Policy, prompt: TensorDictBase, ids: Tensor, positions: Tensor | None = None) -> View:
        """Runs the policy on states ids [B, L]; predictions at ``positions`` (bool [B, L], default: ``allowed``)."""
        if positions is None:
            positions = self.allowed(ids == policy.mask_id, block_offset(policy, prompt[PROMPT_MASK]))
        return self.seen(
            policy, completion_features(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], ids, positions), positions
        )

    def seen(self, policy: Policy, features: Tensor, positions: Tensor) -> View:
        """The view that the policy's head makes of features [N, D] at the N positions of bool [B, L]."""
        logits = forbid(head_logits(policy, features), policy.forbidden_ids)
        return View(logits, self.behaviour, positions, features if self.needs_features else None)

    def forward(
        self, tensordict: TensorDictBase, *, policy: Policy, generator: torch.Generator | None = None
    ) -> TensorDictBase:
        """Generates a completion for every row, from fully masked."""
        return tensordict.update(self.decode(tensordict, policy=policy, generator=generator))

    def decode(
        self, prompt: TensorDictBase, *, policy: Policy, generator: torch.Generator | None = None
    ) -> dict[Any, Tensor]:
        """Completes every row by itself, from fully masked, whatever ``forward`` does with groups; as ``resume``."""
        return self.resume(prompt, self.fully_masked(prompt, policy), policy=policy, generator=generator)

    def fully_masked(self, prompt: TensorDictBase, policy: Policy) -> Tensor:
        """x_0 of every row: int64 [B, L]."""
        shape = (prompt.shape[0], self.completion_length)
        return torch.full(shape, policy.mask_id, dtype=torch.int64, device=prompt[PROMPT_IDS].device)

    def resume(
        self, prompt: TensorDictBase, ids: Tensor, *, policy: Policy, generator: torch.Generator | None = None
    ) -> dict[Any, Tensor]:
        """Completes partially masked sequences.

        Args:
            prompt: holds ``prompt_ids`` and ``prompt_mask``, [B, P].
            ids: int64 [B, L], masked where open; steps are counted from this state.
            policy, generator: services.

        Returns:
            The keys this sampler writes. Positions that were not masked in ``ids`` get ``commit_step`` -1.
        """
        self.attach(policy)
        with self.rolling_out(policy):
            recorder = Recorder(self, policy, ids)
            self.advance(range(self.max_steps), prompt, recorder, policy, generator)
            written = recorder.finish()
        return {key: value.clone() for key, value in written.items()}

    @contextlib.contextmanager
    def rolling_out(self, policy: Policy) -> Iterator[None]:
        """The context of a rollout: no gradients, the adapter merged, and whatever ``as_sampled`` reuses."""
        with merged(policy), torch.inference_mode(), self.as_sampled(policy):
            yield

    def as_sampled(self, policy: Policy) -> contextlib.AbstractContextManager[None]:
        """Within the context and without gradients, the policy is the one that rollouts sample from.

        With ``cache`` that is another distribution than the policy's; else only what is exact is reused.
        """
        if self.cache is None:
            return prefix_cache(policy)
        return policy.cached(self.cache, self.completion_length, self.block_length)

    def advance(
        self,
        steps: range,
        prompt: TensorDictBase,
        recorder: Recorder,
        policy: Policy,
        generator: torch.Generator | None,
    ) -> None:
        """Takes the denoising steps ``steps`` of the rows of ``recorder``, as far as they are not finished."""
        for step in steps:
            rows = self.running(recorder.ids, policy).nonzero().squeeze(-1)
            if len(rows) == 0:
                break
            self._step(step, rows, prompt[rows], recorder, policy, generator)

    def _step(
        self,
        step: int,
        rows: Tensor,
        prompt: TensorDictBase,
        recorder: Recorder,
        policy: Policy,
        generator: torch.Generator | None,
    ) -> None:
        ids = recorder.ids[rows]
        masked = ids == policy.mask_id
        offset = block_offset(policy, prompt[PROMPT_MASK])
        allowed = self.allowed(masked, offset)
        greedy, draft = recorder.wants(STEP_GREEDY_IDS), recorder.wants(STEP_DRAFT_IDS)
        later = greedy and not draft and offset is not None and self.may_choose is not None
        asked = masked if (greedy or draft) and not later else allowed
        features = completion_features(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], ids, asked)
        behind: Tensor | TensorDictBase = prompt.select(PROMPT_IDS, PROMPT_MASK) if later else features[:0]
        if greedy and not draft and not later:  # of what cannot be committed only the best tokens are needed
            inside = allowed[asked]
            features, behind, asked = features[inside], features[~inside], allowed
        held = asked.sum(-1) if asked is allowed else asked.sum(-1) + allowed.sum(-1)  # both are in memory
        for part, place in parts(asked.sum(-1), policy.vocab_size, held):
            some = Rows(rows[part], ids[part], asked[part], allowed[part])
            self._take(step, some, features[place], recorder, policy, generator)
        if len(behind):
            recorder.greedy_behind(step, rows, masked & ~allowed, behind)

    def _take(
        self,
        step: int,
        some: Rows,
        features: Tensor,
        recorder: Recorder,
        policy: Policy,
        generator: torch.Generator | None,
    ) -> None:
        """The step in some rows; its logits are gone before those of the next rows are computed."""
        predicted = self.seen(policy, features, some.asked)
        if recorder.wants(STEP_GREEDY_IDS):
            best = by_rows(lambda logits: logits.argmax(-1), predicted.logits)
            recorder.greedy(step, some.numbers, some.ids.masked_scatter(some.asked, best))
        view = predicted.narrow(some.allowed)
        decision = self.decide(view, generator)
        if recorder.wants(STEP_DRAFT_IDS):
            recorder.draft(step, some.numbers, drafted(some.ids, predicted, decision, generator))
        recorder.step(step, some.numbers, view, decision, self.action_log_prob(view, decision))


def predict(policy: Policy, prompt: TensorDictBase, ids: Tensor, positions: Tensor) -> Tensor:
    """Logits [N, V] at the completion positions marked in bool [B, L], forbidden tokens at -inf."""
    logits = completion_logits(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], ids, positions)
    return forbid(logits, policy.forbidden_ids)


def draw_tokens(view: View, committed: Tensor, generator: torch.Generator | None) -> Tensor:
    """Tokens [B, L] drawn from the behaviour distribution at the committed positions, 0 elsewhere."""
    drawn = draw(view.logits[committed[view.allowed]], view.behaviour, generator)
    return torch.zeros_like(committed, dtype=torch.int64).masked_scatter(committed, drawn)


def drafted(ids: Tensor, view: View, decision: Decision, generator: torch.Generator | None) -> Tensor:
    """The draft of states ids [B, L]: every masked position filled with a draw, int64 [B, L].

    Args:
        ids: int64 [B, L].
        view: predictions at all masked positions.
        decision: its own draws, which are kept; elsewhere tokens are drawn from the behaviour distribution.
        generator: of the noise.
    """
    drawn = decision.committed if decision.drawn is None else decision.drawn
    rest = view.allowed & ~drawn
    more = draw(view.logits[rest[view.allowed]], view.behaviour, generator)
    return torch.where(drawn, decision.tokens, ids).masked_scatter(rest, more)


class StateScoreSampler(Sampler):
    """Base class of samplers that choose positions by a score of the state alone, then draw their tokens.

    The choice does not depend on the tokens drawn, so the exact log-probability is the token part.
    """

    def scores(self, view: View) -> Tensor:
        """Score of each of the N positions, [N]; the highest are committed."""
        raise NotImplementedError

    def committed(self, view: View, generator: torch.Generator | None) -> Tensor:
        """Positions to commit, bool [B, L]."""
        return highest(view.dense(self.scores(view), -torch.inf), view.allowed, self.num_commits(view))

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """The one choice that the state makes."""
        return [(self.committed(view, None), None)]

    def decide(self, view: View, generator: torch.Generator | None) -> Decision:
        """Chooses positions by score, then draws their tokens from the behaviour distribution."""
        committed = self.committed(view, generator)
        return Decision(committed, draw_tokens(view, committed, generator))

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Sum over committed positions of log p(token)."""
        return token_log_prob(view, decision)
