"""Writes a trajectory while it is sampled: one scalar per step, never a distribution over the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import LOG_ZERO, behaviour_log_probs, by_rows, entropy_
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    STEP_DRAFT_IDS,
    STEP_ENTROPY,
    STEP_GREEDY_IDS,
    STEP_LOG_PROB,
    STEP_MODEL_LOG_PROB,
    STEP_NUM_COMMITTED,
    STEP_TOKEN_LOG_PROB,
    STEP_VALID,
    TOKEN_COMMIT_RANK,
    TOKEN_LOG_PROB,
    TOKEN_MODEL_LOG_PROB,
    Key,
)
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.samplers.one_step import BehindTheBlock

if TYPE_CHECKING:
    from dlmrl_kit.samplers.base import Sampler
    from dlmrl_kit.samplers.view import Decision, View

OPTIONAL_KEYS: tuple[Key, ...] = (
    STEP_TOKEN_LOG_PROB,
    STEP_MODEL_LOG_PROB,
    STEP_GREEDY_IDS,
    STEP_DRAFT_IDS,
    TOKEN_LOG_PROB,
    TOKEN_MODEL_LOG_PROB,
)


class Recorder:
    """The arrays of a trajectory in the making.

    Args:
        sampler: its ``written_keys`` say what to record; keys of a kind that is not known here it adds itself.
        policy: for its mask and end-of-text ids.
        ids: int64 [B, L], the start state.
    """

    def __init__(self, sampler: Sampler, policy: Policy, ids: Tensor) -> None:
        self.ids = ids.clone()
        self._policy = policy
        self._keys = tuple(key for key in sampler.written_keys() if isinstance(key, str) or key[0] in ("step", "token"))
        self._num_steps = sampler.max_steps
        batch, length = ids.shape
        like_steps = (batch, self._num_steps)
        device = ids.device
        dtype = next(policy.parameters()).dtype
        real = dtype if dtype == torch.float64 else torch.float32
        never = torch.full(ids.shape, self._num_steps, dtype=torch.int16, device=device)
        self._out: dict[Any, Tensor] = {
            COMMIT_STEP: never.masked_fill(ids != policy.mask_id, -1),
            STEP_VALID: torch.zeros(like_steps, dtype=torch.bool, device=device),
            STEP_NUM_COMMITTED: torch.zeros(like_steps, dtype=torch.int64, device=device),
        }
        for key in self._keys:
            if key in (STEP_GREEDY_IDS, STEP_DRAFT_IDS):
                self._out[key] = torch.zeros((*like_steps, length), dtype=torch.int32, device=device)
            elif key == TOKEN_COMMIT_RANK:
                self._out[key] = torch.zeros((batch, length), dtype=torch.int16, device=device)
            elif key not in self._out and isinstance(key, tuple):
                shape = (batch, length) if key[0] == "token" else like_steps
                self._out[key] = torch.zeros(shape, dtype=real, device=device)
        self._behind = BehindTheBlock(policy, self._out, sampler.may_choose)

    def wants(self, key: Key) -> bool:
        """Whether this key is to be recorded."""
        return key in self._keys

    def select(self, index: Tensor) -> None:
        """Replaces the rows by those at ``index`` (int64 [n]), which may repeat or leave out rows."""
        self._behind.complete(self.ids)
        self.ids = self.ids[index]
        self._out.update({key: value[index] for key, value in self._out.items()})

    def greedy(self, step: int, rows: Tensor, ids: Tensor) -> None:
        """Stores the one-step greedy completions ids [R, L] of ``rows``."""
        self._out[STEP_GREEDY_IDS][rows, step] = ids.int()

    def greedy_behind(self, step: int, rows: Tensor, positions: Tensor, source: Tensor | TensorDictBase) -> None:
        """What these completions lack, at positions (bool [R, L]) behind the block of ``rows``: see ``Waiting``."""
        self._behind.add(step, rows, positions, source, self.ids)

    def draft(self, step: int, rows: Tensor, ids: Tensor) -> None:
        """Stores the drafts ids [R, L] of ``rows``."""
        self._out[STEP_DRAFT_IDS][rows, step] = ids.int()

    def step(self, step: int, rows: Tensor, view: View, decision: Decision, log_prob: Tensor) -> None:
        """Applies a decision to ``rows`` and records it."""
        committed = decision.committed
        count = committed.sum(-1)
        self.ids[rows] = torch.where(committed, decision.tokens, self.ids[rows])
        self._out[COMMIT_STEP][rows] = self._out[COMMIT_STEP][rows].masked_fill(committed, step)
        self._out[STEP_VALID][rows, step] = True
        self._out[STEP_NUM_COMMITTED][rows, step] = count
        self._out[STEP_LOG_PROB][rows, step] = log_prob
        chosen = committed[view.allowed]
        local = view.index[0][chosen]
        index, tokens = chosen.nonzero().squeeze(-1), decision.tokens[committed]

        def of_behaviour(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = behaviour_log_probs(logits, view.behaviour)
            picked = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
            return entropy_(log_probs), picked

        def of_model(logits: Tensor, tokens: Tensor) -> Tensor:
            return logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)

        entropies, picked = by_rows(of_behaviour, view.logits, tokens, at=index)
        self._out[STEP_ENTROPY][rows, step] = view.row_sum(entropies, local) / count
        self._record_tokens("log_prob", "token_log_prob", picked, step, rows, view, committed, local)
        if self.wants(STEP_MODEL_LOG_PROB) or self.wants(TOKEN_MODEL_LOG_PROB):
            picked = by_rows(of_model, view.logits, tokens, at=index)
            self._record_tokens("model_log_prob", "model_log_prob", picked, step, rows, view, committed, local)
        if decision.rank is not None:
            stored = self._out[TOKEN_COMMIT_RANK]
            stored[rows] = torch.where(committed, decision.rank.to(stored.dtype), stored[rows])

    def _record_tokens(
        self,
        token_name: str,
        step_name: str,
        picked: Tensor,
        step: int,
        rows: Tensor,
        view: View,
        committed: Tensor,
        local: Tensor,
    ) -> None:
        per_token, per_step = ("token", token_name), ("step", step_name)
        if not (self.wants(per_token) or self.wants(per_step)):
            return
        picked = picked.clamp(min=LOG_ZERO)
        if self.wants(per_step):
            self._out[per_step][rows, step] = view.row_sum(picked, local)
        if self.wants(per_token):
            self._out[per_token][rows] = self._out[per_token][rows].masked_scatter(committed, picked)

    def finish(self) -> dict[Any, Tensor]:
        """All keys; positions left open by a finished row hold the end-of-text token (padding if there is none)."""
        self._behind.complete(self.ids)
        policy = self._policy
        filler = policy.eos_id if policy.eos_id is not None else policy.pad_id
        self._out[COMPLETION_IDS] = self.ids.masked_fill(self.ids == policy.mask_id, filler)
        return {key: self._out[key] for key in self._keys}
