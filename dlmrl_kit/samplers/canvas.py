"""The states of a sampler that draws positions again, what it sees in them, and the recorder of its trajectories."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    STATE_OPEN,
    STATE_STEPS_IN_BLOCK,
    STEP_ACCEPTED,
    STEP_DRAFT_IDS,
    STEP_GREEDY_IDS,
    STEP_STATE_IDS,
    Key,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.trajectory import alike, on_device, on_host, taken
from dlmrl_kit.samplers.base import Decision, View
from dlmrl_kit.samplers.recorder import Recorder


@dataclass(frozen=True)
class Outlook:
    """What a denoising step of R rows sees and decides before any token is drawn.

    Attributes:
        view: predictions at the canvas, as tokens are drawn from them.
        committed: bool [R, L], the positions that the step accepts; a row without any is finished with its block.
        final: bool [R], whether the step is the last of its block.
        best: int64 [R, L], the most probable tokens.
    """

    view: View
    committed: Tensor
    final: Tensor
    best: Tensor

    def at(self, rows: Tensor) -> Outlook:
        """Returns the outlook of some rows, int64 [n] in ascending order."""
        return Outlook(self.view.at(rows), taken(self.committed, rows), taken(self.final, rows), self.best[rows])


@dataclass(frozen=True)
class State:
    """States of B rows.

    Attributes:
        ids: int64 [B, L], tokens; the mask where a block has not begun.
        open: bool [B, L], positions that are not final.
        steps: int64 [B], denoising steps taken in the present block.
        previous: int64 [B, L], the most probable tokens in the step before; -1 where there is none.
    """

    ids: Tensor
    open: Tensor
    steps: Tensor
    previous: Tensor

    @classmethod
    def of(cls, prompt: TensorDictBase, ids: Tensor, mask_id: int) -> State:
        """Returns the states that ``ids`` [B, L] and the ``core.trajectory.canvas_state`` in ``prompt`` describe."""
        masked = ids == mask_id
        still_open = prompt.get(STATE_OPEN, None)
        steps = prompt.get(STATE_STEPS_IN_BLOCK, None)
        state = cls(
            ids.clone(),
            masked if still_open is None else masked | still_open,
            torch.zeros_like(ids[:, 0]) if steps is None else steps,
            torch.full_like(ids, -1),
        )
        for part in (state.ids, state.open, state.steps):
            on_host(part)  # which is kept in step
        return state

    def at(self, rows: Tensor) -> State:
        """Returns the states of ``rows``."""
        return State(*(taken(part, rows) for part in vars(self).values()))

    def with_ids(self, ids: Tensor) -> State:
        """Returns the states with other tokens."""
        return replace(self, ids=ids)

    def after(self, outlook: Outlook, tokens: Tensor) -> State:
        """Returns the states after a step that put ``tokens`` [B, L] on the canvas."""
        canvas, final = outlook.view.allowed, outlook.final[:, None]
        return State(
            alike(torch.where, canvas, tokens, self.ids),
            alike(_without, self.open, canvas, outlook.final),
            alike(_counted, self.steps, outlook.final),
            torch.where(canvas & ~final, outlook.best, -1),
        )

    def closed(self, canvas: Tensor) -> State:
        """Returns the states when the blocks of ``canvas`` (bool [B, L], a block in every row) are finished."""
        every = on_device(torch.ones(len(self.steps), dtype=torch.bool), canvas.device)
        return State(
            self.ids,
            alike(_without, self.open, canvas, every),
            alike(torch.zeros_like, self.steps),
            torch.full_like(self.ids, -1),
        )

    def put(self, rows: Tensor, part: State) -> State:
        """Returns the states with those of ``rows`` (int64 [R]) replaced."""
        return State(
            *(
                alike(_replaced, whole, rows, some)
                for whole, some in zip(vars(self).values(), vars(part).values(), strict=True)
            )
        )


def _without(still_open: Tensor, canvas: Tensor, final: Tensor) -> Tensor:
    return still_open & ~(canvas & final[:, None])


def _counted(steps: Tensor, final: Tensor) -> Tensor:
    return (steps + 1).masked_fill(final, 0)


def _replaced(whole: Tensor, rows: Tensor, some: Tensor) -> Tensor:
    return whole.index_copy(0, rows, some)


class CanvasRecorder(Recorder):
    """Records trajectories of a sampler that draws positions again, and holds the ``state`` that they are in.

    Args:
        policy: the denoiser.
        state: the start.
        num_steps: T.
        keys: what to record.
    """

    def __init__(self, policy: Policy, state: State, num_steps: int, keys: Collection[Key]) -> None:
        super().__init__(policy, state.open, num_steps, keys)
        self.state = state

    def select(self, index: Tensor) -> None:
        """Replaces the rows by those at ``index`` (int64 [n]), which may repeat or leave out rows."""
        self.state = self.state.at(index)
        self.select_arrays(index)

    def step(self, step: int, rows: Tensor, state: State, outlook: Outlook, tokens: Tensor, log_prob: Tensor) -> None:
        """Records a step of ``rows`` from ``state`` that puts ``tokens`` [R, L] on the canvas, and takes it."""
        view, committed = outlook.view, outlook.committed
        self.put_step(step, rows, view, Decision(committed, tokens), log_prob)
        self.put(STEP_STATE_IDS, step, rows, state.ids)
        self.put(STEP_ACCEPTED, step, rows, committed)
        self.put(STEP_GREEDY_IDS, step, rows, self._filled(state, outlook, outlook.best))
        self.commit(step, rows, view.allowed & outlook.final[:, None])
        # Of the state before, the host knows the tokens; on the canvas there may have been noise since.
        self.state = self.state.put(rows, self.state.at(rows).after(outlook, tokens))

    def close(self, step: int, rows: Tensor, state: State, canvas: Tensor) -> None:
        """Records that the blocks of ``canvas`` [R, L] were finished by the step before ``step`` of ``rows``."""
        self.commit(step - 1, rows, canvas)
        self.state = self.state.put(rows, state.closed(canvas))

    def draft(self, step: int, rows: Tensor, state: State, outlook: Outlook, drawn: Tensor) -> None:
        """Records the drafts of a step: ``drawn`` [R, L] holds a draw at every position of the canvas."""
        self.put(STEP_DRAFT_IDS, step, rows, self._filled(state, outlook, drawn))

    def finish(self) -> dict[Key, Tensor]:
        """Returns all keys; what a finished row leaves open holds the end-of-text token (padding if there is none)."""
        return self.finished(self.state.ids, self.state.open)

    def _filled(self, state: State, outlook: Outlook, tokens: Tensor) -> Tensor:
        """Returns completions with ``tokens`` on the canvas, whose text ends where no block has begun."""
        canvas = outlook.view.allowed
        return torch.where(canvas, tokens, state.ids.masked_fill(state.open & ~canvas, self.policy.filler_id))
