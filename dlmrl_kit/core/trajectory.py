"""The states of a trajectory, rebuilt from (final tokens, step of commit); shape letters as in ``core.keys``.

Steps are counted in the order they are taken, t = 0 .. T-1; the
state before step t is x_t, its action leads to x_{t+1}. Position i is masked in x_t iff ``commit_step[i] >= t``;
positions that were never committed (the end-of-text padding of a row that finished early) have ``commit_step = T``:
masked in every state visited.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_STATE_IDS,
    STEP_VALID,
)


def masked_at(commit_step: Tensor, step: Tensor) -> Tensor:
    """Which positions are masked in x_t.

    Args:
        commit_step: integer [B, L].
        step: int64 [B, K], the t of each asked state.

    Returns:
        bool [B, K, L].
    """
    return commit_step[:, None, :] >= step[:, :, None]


def committed_at(commit_step: Tensor, step: Tensor) -> Tensor:
    """Which positions step t commits: bool [B, K, L] from integer [B, L] and int64 [B, K]."""
    return commit_step[:, None, :] == step[:, :, None]


def state_at(completion_ids: Tensor, commit_step: Tensor, step: Tensor, mask_id: int) -> Tensor:
    """The states x_t: int64 [B, K, L] from int64 [B, L], integer [B, L] and int64 [B, K]."""
    return completion_ids[:, None, :].expand(-1, step.shape[1], -1).masked_fill(masked_at(commit_step, step), mask_id)


def states(tensordict: TensorDictBase, step: Tensor, mask_id: int) -> Tensor:
    """The states x_t of a trajectory, stored or rebuilt: int64 [B, K, L] for int64 [B, K], t up to T."""
    tokens, stored = tensordict[COMPLETION_IDS], tensordict.get(STEP_STATE_IDS, None)
    if stored is None:
        return state_at(tokens, tensordict[COMMIT_STEP], step, mask_id)
    happened = step < num_valid(tensordict)[:, None]
    found = gather_steps(stored, step.clamp(max=stored.shape[1] - 1)).long()
    return torch.where(happened[..., None], found, tokens[:, None, :])


def canvas_state(tensordict: TensorDictBase, step: Tensor) -> dict[str, Tensor]:
    """What a state of a renoising sampler is besides its tokens: ``open`` bool [B, K, L], ``steps_in_block`` [B, K].

    Empty for samplers that fill masks, whose states are tokens alone. ``step``: int64 [B, K].
    """
    if tensordict.get(STEP_STATE_IDS, None) is None:
        return {}
    still_open = masked_at(tensordict[COMMIT_STEP], step)
    last = tensordict[COMMIT_STEP][:, None, :].long().masked_fill(still_open, -1).amax(-1)
    return {"open": still_open, "steps_in_block": step - 1 - last}


def gather_steps(values: Tensor, step: Tensor) -> Tensor:
    """``values[b, step[b, k], ...]``: [B, K, ...] from [B, T, ...] and int64 [B, K]."""
    index = step.reshape(*step.shape, *([1] * (values.dim() - 2))).expand(*step.shape, *values.shape[2:])
    return values.gather(1, index)


def num_valid(tensordict: TensorDictBase) -> Tensor:
    """Number of steps that happened in each row: int64 [B] (steps happen from 0 on, without gaps)."""
    return tensordict[STEP_VALID].sum(-1)


def every_step(tensordict: TensorDictBase) -> TensorDictBase:
    """A copy with all T steps selected, weight 1 where they happened."""
    valid = tensordict[STEP_VALID]
    step = torch.arange(valid.shape[1], device=valid.device).expand_as(valid).masked_fill(~valid, 0)
    batch = tensordict.copy()
    return batch.set(SELECTED_STEP, step).set(SELECTED_WEIGHT, valid.to(torch.float64))


def where_used(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where ``mask``, 0 elsewhere; what is dropped gets gradient 0 even if it is not finite."""
    return torch.where(mask, values, 0.0)
