"""Trajectories: their states, their groups, and how a batch of them is cut; shape letters as in ``core.keys``.

States are rebuilt from (final tokens, step of commit). Steps are counted in the order they are taken, t = 0 .. T-1; the
state before step t is x_t, its action leads to x_{t+1}. Position i is masked in x_t iff ``commit_step[i] >= t``;
positions that were never committed (the end-of-text padding of a row that finished early) have ``commit_step = T``:
masked in every state visited.

A tree of height D has the samples of a group as its leaves. ``("tree", "node")`` numbers the node of each sample at
depth 1 .. D; nodes of different depths or groups may have the same number. ``("tree", "step")`` is the first of the
denoising steps that lead to each depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    GROUP,
    PROMPT_MASK,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_STATE_IDS,
    STEP_VALID,
    TREE_NODE,
    TREE_STEP,
)

B = TypeVar("B", Tensor, TensorDictBase)


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


def partition(*ids: Tensor) -> Tensor:
    """A number 0 .. N - 1 for each of N distinct combinations of ids: int64 [B] from int64 [B] each."""
    return torch.unique(torch.stack(ids, -1), dim=0, return_inverse=True)[1]


def first_rows(index: Tensor) -> Tensor:
    """The first row of each number of a partition: int64 [N] from int64 [B]."""
    rows = torch.arange(len(index), device=index.device)
    none = torch.full((int(index.max()) + 1,), len(index), dtype=torch.int64, device=index.device)
    return none.scatter_reduce(0, index, rows, "amin")


def number_in_group(group: Tensor) -> Tensor:
    """The number of each row among those of its group, 0, 1, ... in the batch's order: int64 [B] from int64 [B]."""
    ordered, order = group.sort(stable=True)
    number = torch.arange(len(group), device=group.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(order).scatter_(0, order, number)


def tree_nodes(tensordict: TensorDictBase) -> Tensor:
    """The nodes of every depth, a number for each of the whole batch's: int64 [B, D]."""
    group, node = tensordict[GROUP], tensordict[TREE_NODE]
    return torch.stack([partition(group, column) for column in node.unbind(-1)], -1)


def tree_level(tensordict: TensorDictBase, step: Tensor) -> Tensor:
    """The level, 0 .. D - 1, that each step belongs to: int64 [B, K] from int64 [B, K]."""
    return (tensordict[TREE_STEP][:, None, :] <= step[:, :, None]).sum(-1) - 1


def group_sum(values: Tensor, group: Tensor) -> Tensor:
    """Sum over the members of each row's group, column by column: [B, ...] from [B, ...] and int64 [B]."""
    ids, index = torch.unique(group, return_inverse=True)
    return values.new_zeros(len(ids), *values.shape[1:]).index_add(0, index, values)[index]


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Mean over the members of each row's group, column by column: [B, ...] from [B, ...] and int64 [B]."""
    return group_sum(values, group) / group_sum(torch.ones_like(values), group)


def group_max(values: Tensor, group: Tensor) -> Tensor:
    """Largest value of the members of each row's group, column by column: [B, ...] from [B, ...] and int64 [B]."""
    ids, index = torch.unique(group, return_inverse=True)
    rows = index.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    most = values.new_full((len(ids), *values.shape[1:]), -torch.inf)
    return most.scatter_reduce(0, rows, values, "amax")[index]


def shuffled(trajectory: TensorDictBase, parts: int, generator: torch.Generator, whole_groups: bool) -> list[Tensor]:
    """Row indices of each minibatch, in random order: int64 each.

    Args:
        trajectory: [B].
        parts: how many; some are empty where there are fewer samples (groups) than parts.
        generator: on the CPU.
        whole_groups: keep the samples of a group together.
    """
    group = trajectory[GROUP].cpu() if whole_groups else torch.arange(len(trajectory))
    index = torch.unique(group, return_inverse=True)[1]
    place = torch.randperm(int(index.max()) + 1, generator=generator)
    if not whole_groups:
        return [part.to(trajectory.device) for part in place.tensor_split(parts)]
    order = place[index].argsort(stable=True)
    bounds = [len(part) for part in place.tensor_split(parts)]
    last_group = torch.tensor(bounds).cumsum(0)
    sizes = [int((place[index] < last).sum()) for last in last_group]
    return [part.to(trajectory.device) for part in order.tensor_split(sizes[:-1])]


def length_order(batch: TensorDictBase, size: int) -> Tensor | None:
    """Order in which rows whose prompts are of like length are together, the longest first: int64 [B].

    Rows of equal length keep their order, so groups, which share their prompt, stay whole. None where nothing is to be
    ordered: one piece of ``size`` rows holds all, or all prompts are of one length.
    """
    if len(batch) <= size:
        return None
    length = batch[PROMPT_MASK].sum(-1)
    return None if bool((length == length[0]).all()) else length.argsort(descending=True, stable=True)


def cut(batch: TensorDictBase, sizes: int | list[int], order: Tensor | None) -> Iterator[tuple[Tensor, TensorDictBase]]:
    """Row indices and a copy of the rows of each piece.

    Args:
        batch: [B].
        sizes: rows of every piece (the last one may be smaller), or of each.
        order: int64 [B], of the rows; None: as they are.
    """
    rows = torch.arange(len(batch), device=batch[PROMPT_MASK].device) if order is None else order
    first = 0
    for index in rows.split(sizes):
        yield index, batch[first : first + len(index)].copy() if order is None else batch[index]
        first += len(index)


def restored(pieces: list[B], rows: list[Tensor]) -> B:
    """Pieces (tensors or TensorDicts), whose rows are those of the indices ``rows``, as one batch in its own order."""
    whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    index = torch.cat(rows)
    in_order = len(index) < 2 or bool((index.diff() > 0).all())
    return whole if in_order else whole[index.argsort()]


def micro_batches(minibatch: TensorDictBase, size: int, whole_groups: bool) -> Iterator[tuple[Tensor, TensorDictBase]]:
    """Row indices and copies of at most ``size`` samples each, those with prompts of like length together.

    With ``whole_groups``, at least one group, groups never cut.
    """
    order = length_order(minibatch, size)
    if not whole_groups:
        yield from cut(minibatch, size, order)
        return
    group = minibatch[GROUP] if order is None else minibatch[GROUP][order]
    sizes = [0]
    for count in torch.unique_consecutive(group, return_counts=True)[1].tolist():
        if sizes[-1] and sizes[-1] + count > size:
            sizes.append(0)
        sizes[-1] += count
    yield from cut(minibatch, sizes, order)


def segment_pieces(micro: TensorDictBase, most: int) -> list[tuple[Tensor, TensorDictBase]]:
    """A micro-batch cut into pieces of at most ``most`` used segments, in order.

    Returns:
        Row indices and a copy of these rows, in which the weights of the segments of other pieces are 0.
    """
    weight = micro[SELECTED_WEIGHT]
    used = weight != 0
    number = used.flatten().long().cumsum(0).reshape(used.shape) - 1
    piece = torch.where(used, number // most, -1)
    found = []
    for i in range(int(piece.max()) + 1 if used.any() else 0):
        mine = piece == i
        rows = mine.any(-1).nonzero().squeeze(-1)
        part = micro[rows].copy()
        part.set(SELECTED_WEIGHT, torch.where(mine, weight, 0.0)[rows])
        found.append((rows, part))
    return found
