"""Samplers that draw positions again: until a block is finished, a step may change what an earlier one drew.

The open positions of the block being decoded are its *canvas*. A step predicts all of it, accepts some positions with a
token each, and decides by the state alone which these are and when the block is finished:

    log pi(x_{t+1} | x_t) = sum over accepted i of log p_i(v_i)

A state is the tokens, which positions are still open, and the steps taken in the block. The tokens cannot be rebuilt
from the final ones and are stored, ``("step", "state_ids")``, with the positions accepted, ``("step", "accepted")``.
``commit_step`` of a position is the last step of its block.

``samplers.renoising`` has those that put noise where nothing is accepted, ``samplers.token_editing`` the one that keeps
what is there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import (
    STATE_COMMITTED,
    STEP_ACCEPTED,
    STEP_DRAFT_IDS,
    STEP_GREEDY_IDS,
    STEP_MARGIN,
    STEP_MODEL_ENTROPY,
    STEP_MODEL_LOG_PROB,
    STEP_STATE_IDS,
    STEP_TOKEN_LOG_PROB,
    Key,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.seeding import combine_seeds, seeds_of
from dlmrl_kit.core.trajectory import on_device, on_host, rows_of, taken
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Decision, MayChoose, Sampler, View, token_log_prob
from dlmrl_kit.samplers.canvas import CanvasRecorder, Outlook, State
from dlmrl_kit.samplers.mask import draw_tokens

LISTED_STEPS = 2
"""With so few denoising steps of a block the audit can list all trajectories."""


class RedrawingSampler(Sampler):
    """Base class of samplers that draw positions again.

    Args:
        completion_length: L, number of positions to fill.
        steps: denoising steps of a block, at most.
        block_length: positions of a block, decoded left to right; None means one block.
        temperature, top_k, top_p: of the behaviour distribution, as ``Sampler``.
        stop_at_eos: a row ends once a finished block holds the end of the text; the rest is padded.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes: ClassVar[tuple[str, ...]] = (*Sampler.not_sizes, "steps")  # ``resized`` limits them
    records_tokens: ClassVar[bool] = False
    optional_keys: ClassVar[tuple[Key, ...]] = (
        STEP_TOKEN_LOG_PROB,
        STEP_MODEL_LOG_PROB,
        STEP_MODEL_ENTROPY,
        STEP_MARGIN,
        STEP_GREEDY_IDS,
    )

    def __init__(
        self,
        completion_length: int,
        steps: int,
        block_length: int | None,
        temperature: float,
        top_k: int,
        top_p: float,
        stop_at_eos: bool,
    ) -> None:
        super().__init__(completion_length, block_length, temperature, top_k, top_p, stop_at_eos)
        check(steps >= 1, self, "steps", steps, "at least 1")
        self.steps = steps
        self.out_keys = [*self.out_keys, STEP_STATE_IDS, STEP_ACCEPTED]

    @property
    def max_steps(self) -> int:
        """T: ``steps`` for each block."""
        return self.steps * -(-self.completion_length // self.block_length)

    def num_steps(self, policy: Policy) -> int:
        """Returns the largest T over all places in a block of the policy's at which a completion may begin."""
        if policy.block_offset(torch.ones(1, 1, dtype=torch.bool)) is None:
            return self.max_steps
        return self.steps * (1 - (1 - self.completion_length) // self.block_length)

    def block_steps(self, positions: int) -> int:
        """Returns ``steps``."""
        return self.steps

    @property
    def max_commits(self) -> int:
        """C: a step may accept a whole block."""
        return self.block_length

    def resized(self, before: Sizes, after: Sizes) -> Sampler:
        """Returns a sampler for completions of ``after.length``, with few enough steps to list all trajectories."""
        return rebuilt(self, **self.fitted(before, after), steps=min(self.steps, LISTED_STEPS))

    @abstractmethod
    def look(self, policy: Policy, prompt: TensorDictBase, state: State) -> Outlook:
        """Predicts the canvas of every row, and decides which positions are accepted."""

    def begun(self, state: State, policy: Policy, seed: Tensor) -> State:
        """Returns the states with what a block begins with; here that is masks."""
        return state

    def drawn(self, outlook: Outlook, asked: Tensor, seed: Tensor) -> Tensor:
        """Draws a token at every position of ``asked`` (bool [R, L]), some of the canvas: int64 [R, L]."""
        return draw_tokens(outlook.view, asked, seed)

    def rest(self, state: State, policy: Policy, seed: Tensor) -> Tensor:
        """Returns what positions hold after a step that did not accept them: int64 [R, L]; here what they held."""
        return state.ids

    def complete(
        self, recorder: CanvasRecorder, prompt: TensorDictBase, policy: Policy, may_choose: MayChoose | None
    ) -> None:
        """Records what is left to find once the last step was taken; here nothing is.

        Args:
            recorder: of the rollout.
            prompt: [B], of its rows.
            policy: the denoiser.
            may_choose: as ``Sampler.forward``.
        """

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Sums log p(token) over the accepted positions: [R]."""
        return token_log_prob(view, decision)

    def asked_positions(self, policy: Policy, prompt: TensorDictBase, ids: Tensor) -> Tensor:
        """Returns the positions that the steps accepted, ``committed`` of ``prompt``."""
        committed: Tensor = prompt[STATE_COMMITTED]
        return committed

    def still_running(self, state: State, policy: Policy) -> Tensor:
        """Returns the rows that are not finished: bool [B], on the CPU."""
        ids, still_open = on_host(state.ids), on_host(state.open)
        if not self.stop_at_eos:
            return still_open.any(-1)
        ended = (policy.is_end(ids) & ~still_open).long().cumsum(-1) > 0
        return (still_open & ~ended).any(-1)

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        policy: Policy,
        keys: Collection[Key] = (),
        cache: Cache | None = None,
        may_choose: MayChoose | None = None,
    ) -> TensorDictBase:
        """Generates a completion for every row, from a canvas without tokens; see ``Sampler.forward``."""
        ids = self.fully_masked(tensordict, policy)
        return tensordict.update(self._denoise(tensordict, ids, policy, self.recorded_keys(keys), cache, may_choose))

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
        may_choose: MayChoose | None = None,
    ) -> dict[Key, Tensor]:
        """Takes denoising steps from the states ``ids`` until every row is finished; returns what is recorded."""
        self.attach(policy)
        with self.rolling_out(policy, cache):
            state = State.of(prompt, ids, policy.mask_id)
            recorder = CanvasRecorder(policy, state, self.num_steps(policy), keys)
            seed = seeds_of(prompt, self)
            for step in range(recorder.num_steps):
                found = self.still_running(recorder.state, policy).nonzero().squeeze(-1)
                if len(found) == 0:
                    break
                rows = on_device(found, seed.device)
                self._step(step, rows, rows_of(prompt, rows), combine_seeds(seed[rows], step), recorder, policy)
            self.complete(recorder, prompt, policy, may_choose)
            written = recorder.finish()
        return {key: value.clone() for key, value in written.items()}

    def _step(
        self, step: int, rows: Tensor, prompt: TensorDictBase, seed: Tensor, recorder: CanvasRecorder, policy: Policy
    ) -> None:
        """Takes one denoising step of ``rows`` and records it."""
        state = self.begun(recorder.state.at(rows), policy, seed)
        outlook = self.look(policy, prompt, state)
        acting = on_host(outlook.committed).any(-1)
        if not bool(acting.all()):
            here, there = (on_device(some.nonzero().squeeze(-1), rows.device) for some in (acting, ~acting))
            canvas = taken(outlook.view.allowed, there)
            recorder.close(step, taken(rows, there), state.at(there), canvas)
            # Their blocks were finished by the step before; this step is the first one of the next block.
            going = self.still_running(recorder.state, policy)[on_host(rows)] & ~acting
            if bool(going.any()):
                on = on_device(going.nonzero().squeeze(-1), rows.device)
                self._step(step, taken(rows, on), rows_of(prompt, on), seed[on], recorder, policy)
            if not bool(acting.any()):
                return
            rows, seed, state, outlook = taken(rows, here), seed[here], state.at(here), outlook.at(here)
        # What is not accepted is drawn for the draft alone.
        drafting = recorder.wants(STEP_DRAFT_IDS)
        drawn = self.drawn(outlook, outlook.view.allowed if drafting else outlook.committed, seed)
        tokens = torch.where(outlook.committed, drawn, self.rest(state, policy, seed))
        on_host(tokens)  # the states on the host are kept in step
        log_prob = self.action_log_prob(outlook.view, Decision(outlook.committed, tokens))
        recorder.step(step, rows, state, outlook, tokens, log_prob)
        if drafting:
            recorder.draft(step, rows, state, outlook, drawn)
