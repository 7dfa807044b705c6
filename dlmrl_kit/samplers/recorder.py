"""Recorders write a trajectory while it is sampled: one scalar per step, never a distribution over the vocabulary.

What they record comes from ``Predicted``: some rows at a denoising step, each of which may be at another step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import LOG_ZERO, behaviour_log_probs, by_rows, entropy_
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    KEYS,
    STEP_ENTROPY,
    STEP_LOG_PROB,
    STEP_MARGIN,
    STEP_MODEL_ENTROPY,
    STEP_MODEL_LOG_PROB,
    STEP_NUM_COMMITTED,
    STEP_TOKEN_LOG_PROB,
    STEP_VALID,
    TOKEN_COMMIT_RANK,
    TOKEN_LOG_PROB,
    TOKEN_MODEL_LOG_PROB,
    Key,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.trajectory import on_device, on_host, places, rows_of, taken
from dlmrl_kit.samplers.base import Decision, MayChoose, View
from dlmrl_kit.samplers.one_step import BehindTheBlock

RECORDED = ("step", "token")
"""Keys that begin with these have an array in a recorder; a sampler adds its other keys itself."""

FOLLOWING: tuple[Key, ...] = (
    STEP_LOG_PROB,
    STEP_TOKEN_LOG_PROB,
    TOKEN_LOG_PROB,
    STEP_MODEL_LOG_PROB,
    TOKEN_MODEL_LOG_PROB,
    STEP_ENTROPY,
    STEP_MODEL_ENTROPY,
    STEP_MARGIN,
)
"""What is recorded that follows from states, actions and weights, so that it can be computed again."""

DTYPES = {"bool": torch.bool, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64}
"""Dtypes of the arrays that hold no real numbers; real numbers are in the policy's precision."""


class Rows(NamedTuple):
    """Some rows at a denoising step.

    Attributes:
        numbers: int64 [R], which rows of the rollout they are.
        prompt: [R].
        seed: int64 [R], of the noise of this step.
        ids: int64 [R, L], their states.
        asked: bool [R, L], where predictions are wanted.
        allowed: bool [R, L], which positions may be committed.
    """

    numbers: Tensor
    prompt: TensorDictBase
    seed: Tensor
    ids: Tensor
    asked: Tensor
    allowed: Tensor

    def part(self, rows: slice | Tensor) -> Rows:
        """Returns some of the rows, by slice or by index int64 [n]."""
        numbers, ids, asked, allowed = (taken(v, rows) for v in (self.numbers, self.ids, self.asked, self.allowed))
        prompt = self.prompt[rows] if isinstance(rows, slice) else rows_of(self.prompt, rows)
        return Rows(numbers, prompt, self.seed[rows], ids, asked, allowed)


class Predicted(NamedTuple):
    """Some rows at a denoising step, and what the policy's body says of them.

    Attributes:
        rows: the rows.
        features: [N, D], at the positions ``rows.asked``.
        behind: bool [R, L] on the CPU, the masked positions behind the block.
        source: what greedy completions find their tokens from there, see ``samplers.one_step.Waiting``; empty where
            they are not wanted, or need no more than what was asked for.
    """

    rows: Rows
    features: Tensor
    behind: Tensor
    source: Tensor | TensorDictBase

    def part(self, index: Tensor) -> Predicted:
        """Returns some of the rows, which may repeat: int64 [n] on the CPU."""
        device, source = self.features.device, self.source
        rows = self.rows.part(on_device(index, device))
        features = self.features[on_device(_inside(self.rows.asked, index), device)]
        if not isinstance(source, Tensor):
            source = rows_of(source, on_device(index, device))
        elif len(source):
            source = source[on_device(_inside(self.behind, index), device)]
        return Predicted(rows, features, self.behind[index], source)


def _inside(positions: Tensor, index: Tensor) -> Tensor:
    """Returns which of N positions, bool [R, L] in row-major order, are those of rows int64 [n] on the CPU, in turn."""
    counts = on_host(positions).sum(-1)
    begin, wanted = (counts.cumsum(0) - counts)[index], counts[index]
    shift = begin - (wanted.cumsum(0) - wanted)
    return torch.arange(int(wanted.sum())) + shift.repeat_interleave(wanted)


class Recorder:
    """Records trajectories in arrays, of the shapes and dtypes that ``core.keys`` says.

    Args:
        policy: for its precision and filler token.
        still_open: bool [B, L], positions that are not final at the start.
        num_steps: T.
        keys: what to record.
    """

    def __init__(self, policy: Policy, still_open: Tensor, num_steps: int, keys: Collection[Key]) -> None:
        self.num_steps = num_steps
        self.policy = policy
        self.keys = tuple(key for key in keys if isinstance(key, str) or key[0] in RECORDED)
        batch, length = still_open.shape
        axes = {"B": batch, "T": num_steps, "L": length}
        never = torch.full(still_open.shape, num_steps, dtype=torch.int16, device=still_open.device)
        # Never committed is T, and final from the start is -1: ``core.trajectory`` rebuilds states by comparing.
        self.out: dict[Key, Tensor] = {COMMIT_STEP: never.masked_fill(~still_open, -1)}
        for key in (STEP_VALID, STEP_NUM_COMMITTED, *self.keys):
            if isinstance(key, tuple):
                dtype = DTYPES.get(KEYS[key].dtype, policy.real_dtype)
                shape = [axes[letter] for letter in KEYS[key].shape.strip("[]").split(", ")]
                self.out[key] = torch.zeros(shape, dtype=dtype, device=still_open.device)

    def wants(self, key: Key) -> bool:
        """Returns whether this key is to be recorded."""
        return key in self.keys

    def put(self, key: Key, step: int | Tensor, rows: Tensor, values: Tensor) -> None:
        """Stores values [R, ...] of a step of ``rows`` (int64 [R]), if the key has an array; ``step``: or int64 [R]."""
        if key in self.out:
            stored = self.out[key]
            stored[rows, step] = values.to(stored.dtype)

    def put_step(self, step: int | Tensor, rows: Tensor, view: View, decision: Decision, log_prob: Tensor) -> None:
        """Stores count, entropy and log-probabilities of a decision that was made in the states of ``view``."""
        committed = decision.committed
        (row, position), index = places(committed), view.where(committed)
        tokens = decision.tokens[row, position]
        count = committed.sum(-1)

        model_tokens = self.wants(STEP_MODEL_LOG_PROB) or self.wants(TOKEN_MODEL_LOG_PROB)
        of_model_steps = [key for key in (STEP_MODEL_ENTROPY, STEP_MARGIN) if self.wants(key)]

        def measured(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
            """Returns token log-probabilities and entropies under the behaviour and what is asked of the model, [n]."""
            log_probs = behaviour_log_probs(logits, view.behaviour)
            found = [log_probs.gather(-1, tokens[:, None]).squeeze(-1), entropy_(log_probs)]
            if model_tokens or of_model_steps:
                log_probs = logits.log_softmax(-1)
                found.append(log_probs.gather(-1, tokens[:, None]).squeeze(-1))
            if STEP_MARGIN in of_model_steps:  # before the entropy, which uses the memory of the log-probabilities
                margin = margins(log_probs)
            if STEP_MODEL_ENTROPY in of_model_steps:
                found.append(entropy_(log_probs))
            if STEP_MARGIN in of_model_steps:
                found.append(margin)
            return tuple(found)

        if view.scan is not None and not of_model_steps:
            picked, entropies = view.scan.log_probs(tokens, index), view.scan.entropy(index)
            of_model = [view.scan.model_log_probs(tokens, index)] if model_tokens else []
        else:
            picked, entropies, *of_model = by_rows(measured, view.logits, tokens, at=index)
        self.put(STEP_VALID, step, rows, torch.ones_like(count, dtype=torch.bool))
        self.put(STEP_NUM_COMMITTED, step, rows, count)
        self.put(STEP_LOG_PROB, step, rows, log_prob)
        self.put(STEP_ENTROPY, step, rows, view.row_sum(entropies, row) / count)
        found: dict[Key, Tensor] = {TOKEN_LOG_PROB: picked, STEP_TOKEN_LOG_PROB: picked}
        if model_tokens:
            found |= {TOKEN_MODEL_LOG_PROB: of_model[0], STEP_MODEL_LOG_PROB: of_model[0]}
        for key, values in zip(of_model_steps, of_model[1:], strict=True):
            self.put(key, step, rows, view.row_sum(values, row) / count)
        self._put_tokens(found, step, rows, view, committed, row)

    def _put_tokens(
        self, found: Mapping[Key, Tensor], step: int | Tensor, rows: Tensor, view: View, committed: Tensor, row: Tensor
    ) -> None:
        """Stores log-probabilities [n] of the committed tokens, by position or summed by step; ``row``: [n]."""
        for key, values in found.items():
            if self.wants(key):
                least = values.clamp(min=LOG_ZERO)  # as likelihoods do, so that ratios start at 1
                if key[0] == "step":
                    self.put(key, step, rows, view.row_sum(least, row))
                else:
                    self.out[key][rows] = self.out[key][rows].masked_scatter(committed, least)

    def commit(self, step: int | Tensor, rows: Tensor, positions: Tensor) -> None:
        """Stores that positions (bool [R, L]) of ``rows`` are final from this step, or these (int64 [R]), on."""
        stored = self.out[COMMIT_STEP]
        when = step.to(stored.dtype)[:, None] if isinstance(step, Tensor) else step
        stored[rows] = torch.where(positions, when, stored[rows])

    def select_arrays(self, index: Tensor) -> None:
        """Replaces the rows of all arrays by those at ``index`` (int64 [n]), which may repeat or leave out rows."""
        self.out.update({key: value[index] for key, value in self.out.items()})

    def finished(self, ids: Tensor, still_open: Tensor) -> dict[Key, Tensor]:
        """Returns all keys; what a finished row leaves open holds the end-of-text token (padding if there is none)."""
        self.out[COMPLETION_IDS] = ids.masked_fill(still_open, self.policy.filler_id)
        return {key: self.out[key] for key in self.keys}


def margins(log_probs: Tensor) -> Tensor:
    """Returns the difference of the two largest probabilities of each distribution, [n] from [n, V]; 1 if V is 1."""
    best = log_probs.topk(min(2, log_probs.shape[-1]), dim=-1).values.exp()
    return best[:, 0] - (best[:, 1] if best.shape[1] > 1 else 0)


class MaskRecorder(Recorder):
    """Records trajectories of a sampler that fills masks, and holds the states ``ids`` int64 [B, L] that they are in.

    Args:
        policy: the denoiser.
        ids: int64 [B, L], the start state.
        num_steps: T.
        keys: what to record.
        may_choose: as ``Sampler.forward``.
    """

    def __init__(
        self,
        policy: Policy,
        ids: Tensor,
        num_steps: int,
        keys: Collection[Key],
        may_choose: MayChoose | None = None,
    ) -> None:
        super().__init__(policy, ids == policy.mask_id, num_steps, keys)
        self.ids = ids.clone()
        on_host(self.ids)  # which is kept in step
        self.may_choose = may_choose
        self.scratch: dict[str, Tensor] = {}
        """Memory that each piece of a step uses again, see ``core.scan``."""
        self._behind: BehindTheBlock | None = None

    def select(self, index: Tensor) -> None:
        """Replaces the rows by those at ``index`` (int64 [n]), which may repeat or leave out rows."""
        self._complete()  # what waits counts rows as they were
        self.ids = taken(self.ids, index)
        self.select_arrays(index)

    def greedy_behind(
        self, step: int | Tensor, rows: Tensor, positions: Tensor, source: Tensor | TensorDictBase
    ) -> None:
        """Takes note of what greedy completions of ``rows`` lack behind the block; as ``BehindTheBlock.add``."""
        if self._behind is None:
            self._behind = BehindTheBlock(self.policy, self.out, self.may_choose)
        self._behind.add(step, rows, positions, source, self.ids)

    def step(self, step: int | Tensor, rows: Tensor, view: View, decision: Decision, log_prob: Tensor) -> None:
        """Applies a decision to ``rows`` and records it, as taken in a step of all, or of each (int64 [R])."""
        self.ids[rows] = torch.where(decision.committed, decision.tokens, self.ids[rows])
        host = on_host(self.ids)
        if host is not self.ids:
            at, committed, tokens = (on_host(part) for part in (rows, decision.committed, decision.tokens))
            host[at] = torch.where(committed, tokens, host[at])
        self.commit(step, rows, decision.committed)
        self.put_step(step, rows, view, decision, log_prob)
        if decision.rank is not None:
            stored = self.out[TOKEN_COMMIT_RANK]
            stored[rows] = torch.where(decision.committed, decision.rank.to(stored.dtype), stored[rows])

    def finish(self) -> dict[Key, Tensor]:
        """Returns all keys; what a finished row leaves open holds the end-of-text token (padding if there is none)."""
        self._complete()
        return self.finished(self.ids, self.ids == self.policy.mask_id)

    def _complete(self) -> None:
        if self._behind is not None:
            self._behind.complete(self.ids)
