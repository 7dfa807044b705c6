"""Renoising samplers (uniform-state diffusion): open positions hold random tokens, and every step redraws all of them.

The open positions of the block being decoded are its *canvas*. It begins with uniformly random tokens. A step predicts
all of it, accepts some positions with a token each, and puts fresh random tokens everywhere else; nothing that was
accepted is kept for good. The last step of a block fills all of it with the most probable tokens. Positions are
accepted by a rule on the state alone, so

    log pi(x_{t+1} | x_t) = sum over accepted i of log p_i(v_i) - (positions renoised) log(tokens of the vocabulary)

The second term is the same for every policy; it cancels in all ratios and gradients and is left out. The last step is
no draw: its log-probability is 0. A state is the tokens, which of them are still open, and the steps taken in the
block; the tokens cannot be rebuilt from the final ones and are stored, ``("step", "state_ids")``, with the positions
accepted, ``("step", "accepted")``. ``commit_step`` of a position is the last step of its block.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.behaviour import Process, by_rows, entropy, forbid
from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import (
    PROMPT_IDS,
    PROMPT_MASK,
    STATE_COMMITTED,
    STATE_FINAL,
    STATE_STEPS_IN_BLOCK,
    STEP_ACCEPTED,
    STEP_DRAFT_IDS,
    STEP_GREEDY_IDS,
    STEP_MODEL_ENTROPY,
    STEP_MODEL_LOG_PROB,
    STEP_STATE_IDS,
    STEP_TOKEN_LOG_PROB,
    Key,
)
from dlmrl_kit.core.policy import Policy, completion_logits
from dlmrl_kit.core.promises import like, per_row, promises
from dlmrl_kit.core.seeding import combine_seeds, seeds_of, uniforms
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Decision, MayChoose, Sampler, View, token_log_prob
from dlmrl_kit.samplers.canvas import CanvasRecorder, Outlook, State
from dlmrl_kit.samplers.mask import draw_tokens

LISTED_STEPS = 2
"""With so few denoising steps of a block the audit can list all trajectories."""


class RenoisingSampler(Sampler):
    """Base class of renoising samplers: subclasses say what a step accepts, and when a block is finished early.

    Args:
        completion_length: L, number of positions to fill.
        steps: denoising steps of a block, at most.
        block_length: positions of a block, decoded left to right; None means one block.
        first_temperature, last_temperature: of the predictions: linear in the steps left, as published (step j of n,
            from 0: last + (first - last) * (n - j) / n).
        temperature: of the behaviour distribution, on top of that; 0 draws the most probable tokens.
        top_k, top_p: filters of the behaviour distribution, as ``Sampler``.
        stop_at_eos: a row ends once a finished block holds the end of the text; the rest is padded.

    Raises:
        ValueError: a value out of range.
    """

    noise: ClassVar[Literal["mask", "uniform"]] = "uniform"
    not_sizes: ClassVar[tuple[str, ...]] = (*Sampler.not_sizes, "steps")  # ``resized`` limits them
    records_tokens: ClassVar[bool] = False
    optional_keys: ClassVar[tuple[Key, ...]] = (
        STEP_TOKEN_LOG_PROB,
        STEP_MODEL_LOG_PROB,
        STEP_MODEL_ENTROPY,
        STEP_GREEDY_IDS,
        STEP_DRAFT_IDS,
    )

    def __init__(
        self,
        completion_length: int,
        steps: int,
        block_length: int | None,
        first_temperature: float,
        last_temperature: float,
        temperature: float,
        top_k: int,
        top_p: float,
        stop_at_eos: bool,
    ) -> None:
        super().__init__(completion_length, block_length, temperature, top_k, top_p, stop_at_eos)
        check(steps >= 1, self, "steps", steps, "at least 1")
        for name, value in (("first_temperature", first_temperature), ("last_temperature", last_temperature)):
            check(0 < value < math.inf, self, name, value, "positive and finite")
        self.steps = steps
        self.first_temperature = first_temperature
        self.last_temperature = last_temperature
        self.out_keys = [*self.out_keys, STEP_STATE_IDS, STEP_ACCEPTED]

    @property
    def max_steps(self) -> int:
        """T: ``steps`` for each block."""
        return self.steps * -(-self.completion_length // self.block_length)

    @property
    def max_commits(self) -> int:
        """C: a step may accept a whole block."""
        return self.block_length

    def resized(self, before: Sizes, after: Sizes) -> Sampler:
        """Returns a sampler for completions of ``after.length``, with few enough steps to list all trajectories."""
        return rebuilt(self, **self.fitted(before, after), steps=min(self.steps, LISTED_STEPS))

    @abstractmethod
    @promises(like("bool", "entropies"))
    def accepted(self, entropies: Tensor) -> Tensor:
        """Returns the positions that a step accepts: bool [R, L], at least one in each row.

        Args:
            entropies: [R, L], of the predictions, in nats; infinite outside of the canvas.
        """

    @abstractmethod
    @promises(per_row("bool", "entropies"))
    def finished(self, entropies: Tensor, best: Tensor, state: State) -> Tensor:
        """Returns the rows whose block this step finishes, before its ``steps`` are over: bool [R].

        Args:
            entropies: as ``accepted``.
            best: int64 [R, L], the most probable tokens of the canvas.
            state: before the step.
        """

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Sums log p(token) over the accepted positions: [R]."""
        return token_log_prob(view, decision)

    def temperature_at(self, steps: Tensor) -> Tensor:
        """Returns the temperature of predictions after ``steps`` (int64 [R]) steps of the block: float64 [R]."""
        left = (self.steps - steps.double()) / self.steps
        return self.last_temperature + (self.first_temperature - self.last_temperature) * left

    def still_running(self, state: State, policy: Policy) -> Tensor:
        """Returns the rows that are not finished: bool [B]."""
        if not self.stop_at_eos:
            return state.open.any(-1)
        ended = (policy.is_end(state.ids) & ~state.open).long().cumsum(-1) > 0
        return (state.open & ~ended).any(-1)

    def look(self, policy: Policy, prompt: TensorDictBase, state: State) -> Outlook:
        """Predicts the canvas of every row, and decides which positions are accepted."""
        canvas = self.allowed(state.open)
        logits = completion_logits(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], state.ids, canvas)
        steps = state.steps[canvas.nonzero(as_tuple=True)[0]]
        view = View(self._cooled(forbid(logits, policy.forbidden_ids), steps), self.behaviour, canvas)
        best = view.dense(view.logits.argmax(-1), 0)
        entropies = view.dense(by_rows(_entropy_of_logits, view.logits), torch.inf)
        final = (state.steps == self.steps - 1) | self.finished(entropies, best, state)
        committed = torch.where(final[:, None], canvas, self.accepted(entropies))
        settled = View(_greedy_rows(view.logits, final[view.index[0]]), view.behaviour, view.allowed)
        return Outlook(settled, committed, final, best)

    def asked_positions(self, policy: Policy, prompt: TensorDictBase, ids: Tensor) -> Tensor:
        """Returns the positions that the steps accepted, ``committed`` of ``prompt``."""
        committed: Tensor = prompt[STATE_COMMITTED]
        return committed

    def processing(self, prompt: TensorDictBase, positions: Tensor) -> Process | None:
        """Divides logits by the temperature of their step; in the last step of a block all mass goes to the best token.

        Args:
            prompt: [R], holds ``steps_in_block`` and ``final`` (``likelihoods.steps.replay``).
            positions: bool [R, L], where logits are given.
        """
        row = positions.nonzero(as_tuple=True)[0]
        steps, last = prompt[STATE_STEPS_IN_BLOCK][row], prompt[STATE_FINAL][row]

        def process(logits: Tensor, part: slice) -> Tensor:
            return _greedy_rows(self._cooled(logits, steps[part]), last[part])

        return process

    def _cooled(self, logits: Tensor, steps: Tensor) -> Tensor:
        """Divides logits [n, V] by the temperature after ``steps`` (int64 [n]) denoising steps of the block."""
        return logits / self.temperature_at(steps).to(logits.dtype)[:, None]

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        policy: Policy,
        keys: Collection[Key] = (),
        cache: Cache | None = None,
        may_choose: MayChoose | None = None,
    ) -> TensorDictBase:
        """Generates a completion for every row, from noise; see ``Sampler.forward``.

        ``may_choose`` is not read: every step predicts the whole canvas anyway.
        """
        ids = self.fully_masked(tensordict, policy)
        return tensordict.update(self._denoise(tensordict, ids, policy, self.recorded_keys(keys), cache))

    def resume(self, prompt: TensorDictBase, ids: Tensor, *, policy: Policy) -> dict[Key, Tensor]:
        """Completes sequences.

        Args:
            prompt: holds ``prompt_ids``, ``prompt_mask``, ``seed``; where a block is half decoded, also ``open`` (bool
                [B, L], default: the masked positions) and ``steps_in_block`` (int64 [B], default: 0).
            ids, policy: as ``Sampler.resume``, which also says what is returned.
        """
        return self._denoise(prompt, ids, policy, self.out_keys)

    def _denoise(
        self,
        prompt: TensorDictBase,
        ids: Tensor,
        policy: Policy,
        keys: Collection[Key],
        cache: Cache | None = None,
    ) -> dict[Key, Tensor]:
        """Takes denoising steps from the states ``ids`` until every row is finished; returns what is recorded."""
        self.attach(policy)
        with self.rolling_out(policy, cache):
            state = State.of(prompt, ids, policy.mask_id)
            recorder = CanvasRecorder(policy, state, self.max_steps, keys)
            vocabulary = noise_tokens(policy)
            seed = seeds_of(prompt, self)
            for step in range(self.max_steps):
                rows = self.still_running(recorder.state, policy).nonzero().squeeze(-1)
                if len(rows) == 0:
                    break
                self._renoise(step, rows, prompt[rows], combine_seeds(seed[rows], step), recorder, policy, vocabulary)
            written = recorder.finish()
        return {key: value.clone() for key, value in written.items()}

    def _renoise(
        self,
        step: int,
        rows: Tensor,
        prompt: TensorDictBase,
        seed: Tensor,
        recorder: CanvasRecorder,
        policy: Policy,
        vocabulary: Tensor,
    ) -> None:
        """Takes one denoising step of ``rows`` and records it."""
        state = recorder.state.at(rows)
        fresh = self.allowed(state.open) & (state.ids == policy.mask_id)
        # A block that begins holds masks, in place of which comes its first noise.
        state = state.with_ids(torch.where(fresh, _uniform(state.ids, vocabulary, seed, "first noise"), state.ids))
        outlook = self.look(policy, prompt, state)
        # What is not accepted is drawn for the draft alone; the last step of a block takes the best tokens.
        asked = outlook.view.allowed if recorder.wants(STEP_DRAFT_IDS) else outlook.committed
        drawn = torch.where(outlook.final[:, None], outlook.best, draw_tokens(outlook.view, asked, seed))
        noise = _uniform(state.ids, vocabulary, seed, "renoising")
        tokens = torch.where(outlook.committed, drawn, noise)
        log_prob = self.action_log_prob(outlook.view, Decision(outlook.committed, tokens))
        recorder.step(step, rows, state, outlook, tokens, log_prob)
        if recorder.wants(STEP_DRAFT_IDS):
            recorder.draft(step, rows, state, outlook, drawn)


def _greedy_rows(logits: Tensor, last: Tensor) -> Tensor:
    """Returns logits [N, V] with all mass on the most probable token where ``last`` (bool [N])."""
    if not bool(last.any()):
        return logits
    best = logits.argmax(-1, keepdim=True)
    certain = torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    return torch.where(last[:, None], certain, logits)


def _entropy_of_logits(logits: Tensor) -> Tensor:
    return entropy(logits.log_softmax(-1))


def noise_tokens(policy: Policy) -> Tensor:
    """Returns the tokens that noise is drawn from, all equally likely: all but the forbidden ones, int64 [U]."""
    allowed = torch.ones(policy.vocab_size, dtype=torch.bool, device=policy.device)
    allowed[[*policy.forbidden_ids, policy.mask_id]] = False
    return allowed.nonzero().squeeze(-1)


def _uniform(like: Tensor, vocabulary: Tensor, seed: Tensor, purpose: str) -> Tensor:
    """Draws tokens of ``vocabulary``, all equally likely, for each row from its seed: int64, shaped like [R, L]."""
    share = uniforms(seed, like.shape[1], purpose=purpose)
    return vocabulary[(share * len(vocabulary)).long()]
