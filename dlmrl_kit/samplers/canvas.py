"""States of renoising samplers, and the recorder of their trajectories."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import LOG_ZERO, behaviour_log_probs, entropy
from dlmrl_kit.core.keys import COMMIT_STEP, COMPLETION_IDS, STEP_DRAFT_IDS, STEP_MODEL_LOG_PROB, Key
from dlmrl_kit.policies.base import Policy

if TYPE_CHECKING:
    from dlmrl_kit.samplers.renoising import Outlook
    from dlmrl_kit.samplers.view import View


@dataclass(frozen=True)
class State:
    """States of B rows.

    ``ids``: int64 [B, L], tokens; the mask where a block has not begun. ``open``: bool [B, L], positions that are not
    final. ``steps``: int64 [B], denoising steps taken in the present block. ``previous``: int64 [B, L], the most
    probable tokens in the step before; -1 where there is none.
    """

    ids: Tensor
    open: Tensor
    steps: Tensor
    previous: Tensor

    @classmethod
    def of(cls, prompt: TensorDictBase, ids: Tensor, mask_id: int) -> State:
        """The state that ``ids`` [B, L] and the keys ``open`` and ``steps_in_block`` of ``prompt`` describe."""
        masked = ids == mask_id
        still_open = prompt.get("open", None)
        steps = prompt.get("steps_in_block", None)
        return cls(
            ids.clone(),
            masked if still_open is None else masked | still_open,
            torch.zeros_like(ids[:, 0]) if steps is None else steps,
            torch.full_like(ids, -1),
        )

    def at(self, rows: Tensor) -> State:
        """The states of ``rows``."""
        return State(self.ids[rows], self.open[rows], self.steps[rows], self.previous[rows])

    def with_ids(self, ids: Tensor) -> State:
        """The states with other tokens."""
        return replace(self, ids=ids)

    def after(self, outlook: Outlook, tokens: Tensor) -> State:
        """The states after a step that put ``tokens`` [B, L] on the canvas."""
        canvas, final = outlook.view.allowed, outlook.final[:, None]
        return State(
            torch.where(canvas, tokens, self.ids),
            self.open & ~(canvas & final),
            torch.where(outlook.final, 0, self.steps + 1),
            torch.where(canvas & ~final, outlook.best, -1),
        )


class CanvasRecorder:
    """The arrays of a renoising trajectory in the making.

    Args:
        keys: what to record.
        num_steps: T.
        state: the start.
        policy: for its mask and end-of-text ids.
    """

    def __init__(self, keys: tuple[Key, ...], num_steps: int, state: State, policy: Policy) -> None:
        self.state = state
        self._keys, self._policy = keys, policy
        batch, length = state.ids.shape
        device = state.ids.device
        dtype = next(policy.parameters()).dtype
        real = dtype if dtype == torch.float64 else torch.float32
        never = torch.full((batch, length), num_steps, dtype=torch.int16, device=device)
        kinds = {"valid": torch.bool, "num_committed": torch.int64, "accepted": torch.bool}
        kinds |= {name: torch.int32 for name in ("state_ids", "greedy_ids", "draft_ids")}
        wide = ("accepted", "state_ids", "greedy_ids", "draft_ids")
        self._out: dict[Any, Tensor] = {COMMIT_STEP: never.masked_fill(~state.open, -1)}
        for key in keys:
            if isinstance(key, tuple):
                shape = (batch, num_steps, length) if key[1] in wide else (batch, num_steps)
                self._out[key] = torch.zeros(shape, dtype=kinds.get(key[1], real), device=device)

    def wants(self, key: Key) -> bool:
        """Whether this key is to be recorded."""
        return key in self._keys

    def select(self, index: Tensor) -> None:
        """Replaces the rows by those at ``index`` (int64 [n]), which may repeat or leave out rows."""
        self.state = self.state.at(index)
        self._out = {key: value[index] for key, value in self._out.items()}

    def step(self, step: int, rows: Tensor, state: State, outlook: Outlook, tokens: Tensor, log_prob: Tensor) -> None:
        """Records a step of ``rows`` from ``state`` that put ``tokens`` [R, L] on the canvas, and takes it."""
        view, committed = outlook.view, outlook.committed
        count = committed.sum(-1)
        chosen = committed[view.allowed]
        row = view.index[0][chosen]
        logits = view.logits[chosen]
        behaviour = behaviour_log_probs(logits, view.behaviour)
        values = {
            "valid": torch.ones_like(outlook.final),
            "log_prob": log_prob,
            "entropy": view.row_sum(entropy(behaviour), row) / count,
            "num_committed": count,
            "state_ids": state.ids.int(),
            "accepted": committed,
            "greedy_ids": self._filled(state, outlook, outlook.best).int(),
            "token_log_prob": _picked(view, behaviour, tokens[committed], row),
        }
        if self.wants(STEP_MODEL_LOG_PROB):
            values["model_log_prob"] = _picked(view, logits.log_softmax(-1), tokens[committed], row)
        for name, value in values.items():
            if self.wants(("step", name)):
                stored = self._out["step", name]
                stored[rows, step] = value.to(stored.dtype)
        done = outlook.view.allowed & outlook.final[:, None]
        self._out[COMMIT_STEP][rows] = self._out[COMMIT_STEP][rows].masked_fill(done, step)
        after = state.after(outlook, tokens)
        self.state = State(
            *(
                whole.index_copy(0, rows, part)
                for whole, part in zip(vars(self.state).values(), vars(after).values(), strict=True)
            )
        )

    def draft(self, step: int, rows: Tensor, state: State, outlook: Outlook, drawn: Tensor) -> None:
        """Records the canvas with a draw at every position, ``drawn`` [R, L]."""
        self._out[STEP_DRAFT_IDS][rows, step] = self._filled(state, outlook, drawn).int()

    def finish(self) -> dict[Any, Tensor]:
        """All keys; positions left open by a finished row hold the end of text (padding if there is none)."""
        self._out[COMPLETION_IDS] = self.state.ids.masked_fill(self.state.open, self._filler)
        return {key: self._out[key] for key in self._keys}

    @property
    def _filler(self) -> int:
        return self._policy.eos_id if self._policy.eos_id is not None else self._policy.pad_id

    def _filled(self, state: State, outlook: Outlook, tokens: Tensor) -> Tensor:
        """The canvas with ``tokens``; the text ends where no block has begun."""
        canvas = outlook.view.allowed
        return torch.where(canvas, tokens, state.ids.masked_fill(state.open & ~canvas, self._filler))


def _picked(view: View, log_probs: Tensor, tokens: Tensor, row: Tensor) -> Tensor:
    return view.row_sum(log_probs.gather(-1, tokens[:, None]).squeeze(-1).clamp(min=LOG_ZERO), row)
