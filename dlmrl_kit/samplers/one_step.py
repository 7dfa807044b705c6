"""One-step greedy completions: the best tokens behind the block, found only for the steps that may be selected.

``("step", "greedy_ids")`` fills all masked positions of x_t with their most probable tokens. In the block that is being
decoded logits are there anyway. Behind it the head would run for these tokens alone, at most of the masked positions.
So the features wait until the selector is known to leave the step out, or the rollout ends. A policy that denoises
block by block would run whole blocks for nothing else: it is run again, on the states that may be selected.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import by_rows, forbid
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    PROMPT_IDS,
    PROMPT_MASK,
    STEP_ENTROPY,
    STEP_GREEDY_IDS,
    STEP_MODEL_ENTROPY,
    STEP_NUM_COMMITTED,
    STEP_VALID,
    Key,
)
from dlmrl_kit.core.policy import LOGITS_BYTES, Policy, completion_features, is_large, most_predictions
from dlmrl_kit.core.scan import best_in_tiles, head_weight
from dlmrl_kit.core.trajectory import on_device, on_host, rows_of, state_at, taken
from dlmrl_kit.samplers.base import MayChoose

CHOSEN_BY: tuple[Key, ...] = (STEP_VALID, STEP_ENTROPY, STEP_NUM_COMMITTED, STEP_MODEL_ENTROPY)
"""Keys of an unfinished rollout that ``may_choose`` of ``Sampler.forward`` can read, where they are recorded."""

NOT_COMPUTED = -1
"""Fills ``("step", "greedy_ids")`` at steps that the selector leaves out."""

_FEW_BYTES = 2**20  # so much may wait before the selector is asked


class Waiting(NamedTuple):
    """Rows whose best tokens behind the block are still to be found, each at one step.

    Attributes:
        rows, step: int64 [R].
        positions: bool [R, L], those behind the block.
        source: what the tokens are found from: features [N, D] at the positions; or prompts [R], ``prompt_ids`` and
            ``prompt_mask``, to run the policy again.
    """

    rows: Tensor
    step: Tensor
    positions: Tensor
    source: Tensor | TensorDictBase

    def at(self, kept: Tensor) -> Waiting:
        """Returns some of the rows, bool [R] on the CPU."""
        inside = kept[on_host(self.positions).nonzero()[:, 0]] if isinstance(self.source, Tensor) else kept
        rows, places = (on_device(some.nonzero().squeeze(-1), self.rows.device) for some in (kept, inside))
        source = self.source[places] if isinstance(self.source, Tensor) else rows_of(self.source, places)
        return Waiting(taken(self.rows, rows), taken(self.step, rows), taken(self.positions, rows), source)


class BehindTheBlock:
    """Finds the best tokens behind the block, over a rollout.

    Args:
        policy: its head turns features into logits.
        out: the recorder's arrays of the trajectory; ``("step", "greedy_ids")`` is completed in place.
        may_choose: as ``Sampler.forward``.
    """

    def __init__(self, policy: Policy, out: dict[Key, Tensor], may_choose: MayChoose | None) -> None:
        self._out = out
        self._policy = policy
        self._may_choose = may_choose
        self._waiting: list[Waiting] = []
        self._limit = _FEW_BYTES

    def add(
        self, step: int | Tensor, rows: Tensor, positions: Tensor, source: Tensor | TensorDictBase, ids: Tensor
    ) -> None:
        """Takes note of a recorded step; arguments as ``Waiting``, and ``ids`` int64 [B, L], the present states."""
        at = step if isinstance(step, Tensor) else on_device(torch.full(rows.shape, step), rows.device)
        self._waiting.append(Waiting(rows, at, positions, source))
        if self._bytes() > self._limit:
            self._leave_out()
            self._limit = max(2 * self._bytes(), _FEW_BYTES)  # doubles, so that the selector is asked rarely
        # Either no step can be left out, or what waits takes more memory than a piece of logits may.
        if self._may_choose is None or self._limit > LOGITS_BYTES[ids.device.type == "cpu"]:
            self.complete(ids)

    def complete(self, ids: Tensor) -> None:
        """Fills in the best tokens of every waiting step that may still be selected."""
        self._leave_out()
        for rows, step, positions, features in self._with_features(ids):
            stored = self._out[STEP_GREEDY_IDS]
            best = best_tokens(self._policy, features).int()
            stored[rows, step] = stored[rows, step].masked_scatter(positions, best)
        self._waiting = []
        self._limit = _FEW_BYTES

    def _with_features(self, ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yields rows, steps, positions and features: those that were kept, then those that the policy computes now."""
        again = []
        for waiting in self._waiting:
            if isinstance(waiting.source, Tensor):
                yield waiting.rows, waiting.step, waiting.positions, waiting.source
            else:
                again.append(waiting.at(on_host(waiting.positions).any(-1)))
        again = [waiting for waiting in again if len(waiting.rows)]  # those at the last block have nothing behind it
        if not again:
            return
        # States of different steps are mixed, as many at a time as the rollout has rows.
        batches: Any = (torch.cat(parts).split(len(ids)) for parts in zip(*again, strict=True))
        for rows, step, positions, prompt in zip(*batches, strict=True):
            states = state_at(ids[rows], self._out[COMMIT_STEP][rows], step[:, None], self._policy.mask_id)
            given = (prompt[PROMPT_IDS], prompt[PROMPT_MASK], states.squeeze(1), positions)
            yield rows, step, positions, completion_features(self._policy, *given)

    def _leave_out(self) -> None:
        """Drops the steps that the selector would leave out of the rows, as far as these have come."""
        if self._may_choose is None or not self._waiting:
            return
        so_far = TensorDict(
            {key: self._out[key] for key in CHOSEN_BY if key in self._out}, [len(self._out[COMMIT_STEP])]
        )
        kept = on_host(self._may_choose(so_far))
        stored, before = self._out[STEP_GREEDY_IDS], self._waiting
        self._waiting = []
        for waiting in before:
            chosen = kept[on_host(waiting.rows), on_host(waiting.step)]
            dropped = on_device((~chosen).nonzero().squeeze(-1), stored.device)
            places = (waiting.rows[dropped], waiting.step[dropped])
            stored[places] = torch.full_like(stored[places], NOT_COMPUTED)
            self._waiting.append(waiting.at(chosen))

    def _bytes(self) -> int:
        return sum(waiting.source.nbytes for waiting in self._waiting if isinstance(waiting.source, Tensor))


def best_tokens(policy: Policy, features: Tensor) -> Tensor:
    """Returns the most probable tokens, int64 [N], for features [N, D]; few logits are in memory at once."""

    if is_large(policy.vocab_size) and len(features):
        weight = head_weight(policy, features)
        if weight is not None:
            return best_in_tiles(weight, features, policy.forbidden_ids)

    def best(piece: Tensor) -> Tensor:
        logits = forbid(policy.head(piece), policy.forbidden_ids)
        return by_rows(lambda part: part.argmax(-1), logits)

    pieces = features.split(most_predictions(policy.vocab_size, features.device))
    return torch.cat([best(piece) for piece in pieces if len(piece)] or [features.new_zeros(0, dtype=torch.int64)])
