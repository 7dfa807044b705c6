"""Renoising samplers (uniform-state diffusion): open positions hold random tokens, and every step redraws all of them.

A canvas begins with uniformly random tokens. A step predicts all of it, accepts some positions with a token each, and
puts fresh random tokens everywhere else; nothing that was accepted is kept for good. The last step of a block fills all
of it with the most probable tokens. Positions are accepted by a rule on the state alone, so

    log pi(x_{t+1} | x_t) = sum over accepted i of log p_i(v_i) - (positions renoised) log(tokens of the vocabulary)

The second term is the same for every policy; it cancels in all ratios and gradients and is left out. The last step is
no draw: its log-probability is 0. States are stored, as of all samplers of ``samplers.redrawing``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import Process, by_rows, entropy, forbid
from dlmrl_kit.core.keys import (
    PROMPT_IDS,
    PROMPT_MASK,
    STATE_FINAL,
    STATE_STEPS_IN_BLOCK,
    STEP_DRAFT_IDS,
    Key,
)
from dlmrl_kit.core.policy import Policy, completion_logits
from dlmrl_kit.core.promises import like, per_row, promises
from dlmrl_kit.core.seeding import uniforms
from dlmrl_kit.core.trajectory import alike, bring, on_device, on_host, places, taken
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.canvas import Outlook, State
from dlmrl_kit.samplers.redrawing import RedrawingSampler


class RenoisingSampler(RedrawingSampler):
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
    optional_keys: ClassVar[tuple[Key, ...]] = (*RedrawingSampler.optional_keys, STEP_DRAFT_IDS)

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
        super().__init__(completion_length, steps, block_length, temperature, top_k, top_p, stop_at_eos)
        for name, value in (("first_temperature", first_temperature), ("last_temperature", last_temperature)):
            check(0 < value < math.inf, self, name, value, "positive and finite")
        self.first_temperature = first_temperature
        self.last_temperature = last_temperature

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

    def temperature_at(self, steps: Tensor) -> Tensor:
        """Returns the temperature of predictions after ``steps`` (int64 [R]) steps of the block: float64 [R]."""
        left = (self.steps - steps.double()) / self.steps
        return self.last_temperature + (self.first_temperature - self.last_temperature) * left

    def begun(self, state: State, policy: Policy, seed: Tensor) -> State:
        """Returns the states with noise where a block begins, which holds masks."""
        ids, still_open = on_host(state.ids), on_host(state.open)
        fresh = self.allowed(still_open) & (ids == policy.mask_id)
        if not bool(fresh.any()):
            return state
        noise = _uniform(state.ids, policy, seed, "first noise")
        return state.with_ids(torch.where(on_device(fresh, noise.device), noise, state.ids))

    def look(self, policy: Policy, prompt: TensorDictBase, state: State) -> Outlook:
        """Predicts the canvas of every row, and decides which positions are accepted."""
        canvas = alike(self.allowed, state.open)
        logits = completion_logits(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], state.ids, canvas)
        view = View(logits, self.behaviour, canvas)
        cooled = self._cooled(forbid(logits, policy.forbidden_ids), state.steps[view.index[0]])
        view = View(cooled, self.behaviour, canvas)
        best = view.dense(view.logits.argmax(-1), 0)
        entropies = view.dense(by_rows(_entropy_of_logits, view.logits), torch.inf)
        final = (state.steps == self.steps - 1) | self.finished(entropies, best, state)
        committed = torch.where(final[:, None], canvas, self.accepted(entropies))
        ends = final[:, None].expand_as(committed).contiguous()
        bring(committed, ends)
        final = alike(_first_column, ends)
        last = taken(final, view.index[0])
        return Outlook(View(_greedy_rows(view.logits, last), view.behaviour, canvas), committed, final, best)

    def drawn(self, outlook: Outlook, asked: Tensor, seed: Tensor) -> Tensor:
        """Draws tokens; the last step of a block takes the best ones."""
        return torch.where(outlook.final[:, None], outlook.best, super().drawn(outlook, asked, seed))

    def rest(self, state: State, policy: Policy, seed: Tensor) -> Tensor:
        """Returns new noise."""
        return _uniform(state.ids, policy, seed, "renoising")

    def processing(self, prompt: TensorDictBase, positions: Tensor) -> Process | None:
        """Divides logits by the temperature of their step; in the last step of a block all mass goes to the best token.

        Args:
            prompt: [R], holds ``steps_in_block`` and ``final`` (``likelihoods.steps.replay``).
            positions: bool [R, L], where logits are given.
        """
        row = places(positions)[0]
        steps, last = prompt[STATE_STEPS_IN_BLOCK][row], prompt[STATE_FINAL][row]

        def process(logits: Tensor, part: slice) -> Tensor:
            return _greedy_rows(self._cooled(logits, steps[part]), last[part])

        return process

    def _cooled(self, logits: Tensor, steps: Tensor) -> Tensor:
        """Divides logits [n, V] by the temperature after ``steps`` (int64 [n]) denoising steps of the block."""
        return logits / self.temperature_at(steps).to(logits.dtype)[:, None]


def _first_column(values: Tensor) -> Tensor:
    return values[:, 0]


def _greedy_rows(logits: Tensor, last: Tensor) -> Tensor:
    """Returns logits [N, V] with all mass on the most probable token where ``last`` (bool [N])."""
    if not bool(on_host(last).any()):
        return logits
    best = logits.argmax(-1, keepdim=True)
    certain = torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    return torch.where(last[:, None], certain, logits)


def _entropy_of_logits(logits: Tensor) -> Tensor:
    return entropy(logits.log_softmax(-1))


def noise_tokens(policy: Policy) -> list[int]:
    """Returns the tokens that noise is drawn from, all equally likely: all but the forbidden ones."""
    return [token for token in range(policy.vocab_size) if token not in {*policy.forbidden_ids, policy.mask_id}]


def _uniform(like: Tensor, policy: Policy, seed: Tensor, purpose: str) -> Tensor:
    """Draws tokens of ``noise_tokens``, all equally likely, for each row from its seed: int64, shaped like [R, L]."""
    left_out = torch.tensor(sorted({*policy.forbidden_ids, policy.mask_id}))
    # The n-th of the tokens that are left is n plus how many are left out before it.
    before = on_device(left_out - torch.arange(len(left_out)), like.device)
    share = uniforms(seed, like.shape[1], purpose=purpose)
    number = (share * (policy.vocab_size - len(left_out))).long()
    return number + torch.searchsorted(before, number, right=True)
