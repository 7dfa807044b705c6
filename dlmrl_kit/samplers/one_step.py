"""One-step greedy completions: the best tokens behind the block, found only for the steps that can be chosen.

Inside the block the logits are there anyway. Behind it the head would be asked for nothing else, at most of the masked
positions; so the features wait until the selector has left a step out, or the rollout ends. A policy that denoises
block by block would run through whole blocks for nothing else: it is run again, on the states that were chosen.
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
    STEP_NUM_COMMITTED,
    STEP_VALID,
    Key,
)
from dlmrl_kit.core.policy import LOGITS_BYTES, Policy, completion_features, most_predictions
from dlmrl_kit.core.trajectory import state_at
from dlmrl_kit.samplers.base import MayChoose

RECORDED_ALWAYS: tuple[Key, ...] = (STEP_VALID, STEP_ENTROPY, STEP_NUM_COMMITTED)
"""Keys of a rollout under way that ``may_choose`` of ``Sampler.forward`` can read."""

NOT_COMPUTED = -1
"""In ``("step", "greedy_ids")``, at steps that the recipe's selector does not choose."""

_FEW_BYTES = 2**20


class Waiting(NamedTuple):
    """Rows int64 [R] at steps int64 [R], and what the best tokens at the positions (bool [R, L]) behind the block are
    found from: features [N, D] there; or prompts [R], with ``prompt_ids`` and ``prompt_mask``, to run the policy again.
    """

    rows: Tensor
    step: Tensor
    positions: Tensor
    source: Tensor | TensorDictBase

    def at(self, kept: Tensor) -> Waiting:
        """Some of the rows, bool [R]."""
        inside = kept[self.positions.nonzero()[:, 0]] if isinstance(self.source, Tensor) else kept
        return Waiting(self.rows[kept], self.step[kept], self.positions[kept], self.source[inside])


class BehindTheBlock:
    """The positions behind the block, over a rollout.

    Args:
        policy: its head turns features into logits.
        out: the recorder's arrays of the trajectory; ``("step", "greedy_ids")`` is completed in place.
        may_choose: ``may_choose`` of ``Sampler.forward``.
    """

    def __init__(self, policy: Policy, out: dict[Key, Tensor], may_choose: MayChoose | None) -> None:
        self._out = out
        self._policy = policy
        self._may_choose = may_choose
        self._waiting: list[Waiting] = []
        self._limit = _FEW_BYTES

    def add(self, step: int, rows: Tensor, positions: Tensor, source: Tensor | TensorDictBase, ids: Tensor) -> None:
        """A step that was recorded; see ``Waiting``. ``ids``: int64 [B, L], as the trajectory is now."""
        self._waiting.append(Waiting(rows, torch.full_like(rows, step), positions, source))
        if self._bytes() > self._limit:
            self._leave_out()
            self._limit = max(2 * self._bytes(), _FEW_BYTES)  # so that few steps ask
        if self._may_choose is None or self._limit > LOGITS_BYTES[ids.device.type == "cpu"]:
            self.complete(ids)

    def complete(self, ids: Tensor) -> None:
        """Fills in the best tokens of every step that can be chosen."""
        self._leave_out()
        for rows, step, positions, features in self._with_features(ids):
            stored = self._out[STEP_GREEDY_IDS]
            best = best_tokens(self._policy, features).int()
            stored[rows, step] = stored[rows, step].masked_scatter(positions, best)
        self._waiting = []
        self._limit = _FEW_BYTES

    def _with_features(self, ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Rows, steps, positions and features: those that were kept, then those that the policy gives now."""
        again = []
        for waiting in self._waiting:
            if isinstance(waiting.source, Tensor):
                yield waiting.rows, waiting.step, waiting.positions, waiting.source
            else:
                again.append(waiting.at(waiting.positions.any(-1)))
        if not again:
            return
        batches: Any = (torch.cat(parts).split(len(ids)) for parts in zip(*again, strict=True))
        for rows, step, positions, prompt in zip(*batches, strict=True):
            states = state_at(ids[rows], self._out[COMMIT_STEP][rows], step[:, None], self._policy.mask_id)
            given = (prompt[PROMPT_IDS], prompt[PROMPT_MASK], states.squeeze(1), positions)
            yield rows, step, positions, completion_features(self._policy, *given)

    def _leave_out(self) -> None:
        """Drops what the selector leaves out of the rows as far as they got."""
        if self._may_choose is None or not self._waiting:
            return
        so_far = TensorDict({key: self._out[key] for key in RECORDED_ALWAYS}, [len(self._out[COMMIT_STEP])])
        kept = self._may_choose(so_far)
        for rows, step, _, _ in self._waiting:
            dropped = ~kept[rows, step]
            self._out[STEP_GREEDY_IDS][rows[dropped], step[dropped]] = NOT_COMPUTED
        self._waiting = [waiting.at(kept[waiting.rows, waiting.step]) for waiting in self._waiting]

    def _bytes(self) -> int:
        return sum(waiting.source.nbytes for waiting in self._waiting if isinstance(waiting.source, Tensor))


def best_tokens(policy: Policy, features: Tensor) -> Tensor:
    """The most probable tokens, int64 [N], from features [N, D]; few logits are in memory at once."""

    def best(piece: Tensor) -> Tensor:
        logits = forbid(policy.head(piece), policy.forbidden_ids)
        return by_rows(lambda part: part.argmax(-1), logits)

    pieces = features.split(most_predictions(policy.vocab_size, features.device))
    return torch.cat([best(piece) for piece in pieces if len(piece)] or [features.new_zeros(0, dtype=torch.int64)])
