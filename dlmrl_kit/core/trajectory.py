"""Trajectories: their states, their groups, and how batches are cut. Shape letters are as in ``core.keys``.

Steps are counted in the order in which they are taken, t = 0 .. T-1: the state before step t is x_t, and the action in
it leads to x_{t+1}. A trajectory need not store its states: position i is masked in x_t iff ``commit_step[i] >= t``,
else it holds its final token. Positions that were never committed (end-of-text padding of a row that finished early)
have ``commit_step = T``, so that they are masked in every state.

What a step computes depends on the states: which rows are not finished, which positions are open. On a GPU, asking for
that makes the host wait until everything before it is done. So the host keeps a copy of the states and masks of a
rollout (``on_host``), works out places there, and sends them ahead (``on_device``). Where tensors are on the CPU anyway
nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    GROUP,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STATE_OPEN,
    STATE_STEPS_IN_BLOCK,
    STEP_NUM_COMMITTED,
    STEP_STATE_IDS,
    STEP_VALID,
)

B = TypeVar("B", Tensor, TensorDictBase)

_ON_HOST = WeakTensorKeyDictionary()
"""The values of tensors on other devices, as CPU tensors."""


def on_host(values: Tensor) -> Tensor:
    """Returns tokens, places or masks as a CPU tensor: what is known of them, else a copy, which the host waits for.

    What was copied is known from then on, until the tensor is gone; it must not be changed in place.
    """
    if values.device.type == "cpu":
        return values
    known: Tensor | None = _ON_HOST.get(values)
    return known if known is not None else with_host(values, values.cpu())


def with_host(values: Tensor, host: Tensor) -> Tensor:
    """Remembers the values of a tensor on another device, a CPU tensor, and returns these."""
    _ON_HOST[values] = host
    return host


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Returns a CPU tensor on the device, without waiting for it; the host knows its values."""
    if device.type == "cpu":
        return values
    there = values.to(device, non_blocking=True)
    with_host(there, values)
    return there


def bring(*several: Tensor) -> None:
    """Copies integers or bools of one shape to the host together, so that it waits once, unless all are known."""
    if all(values.device.type == "cpu" or values in _ON_HOST for values in several):
        return
    together = torch.stack([values.long() for values in several]).cpu()
    for values, host in zip(several, together, strict=True):
        with_host(values, host.to(values.dtype))


def alike(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Returns ``function(*values)``, of which the host knows the values if it knows those of ``values``."""
    found = function(*values)
    if found.device.type != "cpu" and all(v.device.type == "cpu" or v in _ON_HOST for v in values):
        with_host(found, function(*map(on_host, values)))
    return found


def taken(values: Tensor, index: Tensor | slice | tuple[slice, ...]) -> Tensor:
    """Returns ``values[index]``, of which the host knows the values if it knows those of ``values``."""
    some = values[index]
    known: Tensor | None = None if values.device.type == "cpu" else _ON_HOST.get(values)
    if known is not None:
        with_host(some, known[on_host(index) if isinstance(index, Tensor) else index])
    return some


def rows_of(prompt: TensorDictBase, rows: Tensor) -> TensorDictBase:
    """Returns rows (int64 [R]) of prompts, of whose tokens and masks the host knows the values."""
    some = prompt[rows]
    if rows.device.type != "cpu":
        for key in (PROMPT_IDS, PROMPT_MASK):
            with_host(some[key], on_host(prompt[key])[on_host(rows)])
    return some


def beside(left: Tensor, right: Tensor) -> Tensor:
    """Joins [B, M] and [B, N] to [B, M + N], of which the host knows the values if it knows those of both."""
    both = torch.cat([left, right], dim=1)
    if both.device.type != "cpu" and left in _ON_HOST and right in _ON_HOST:
        with_host(both, torch.cat([on_host(left), on_host(right)], dim=1))
    return both


def places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns row and column, int64 [N] each, of the places where a mask [B, L] is True, in row-major order."""
    row, column = on_host(mask).nonzero(as_tuple=True)
    return on_device(row, mask.device), on_device(column, mask.device)


def unpadded(prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Removes from left-padded prompts, int64 and bool [B, P], the columns that are padding in every row."""
    real = on_host(prompt_mask)
    if real.numel() == 0 or bool(real[:, 0].any()):
        return prompt_ids, prompt_mask
    rest = (slice(None), slice(int((~real.any(0)).long().cumprod(0).sum()), None))
    return taken(prompt_ids, rest), taken(prompt_mask, rest)


def masked_at(commit_step: Tensor, step: Tensor) -> Tensor:
    """Finds the positions that are masked in the states x_t.

    Args:
        commit_step: integer [B, L].
        step: int64 [B, K], the t of each state.

    Returns:
        bool [B, K, L].
    """
    return commit_step[:, None, :] >= step[:, :, None]


def committed_at(commit_step: Tensor, step: Tensor) -> Tensor:
    """Finds the positions that steps commit: bool [B, K, L] from integer [B, L] and int64 [B, K]."""
    return commit_step[:, None, :] == step[:, :, None]


def state_at(completion_ids: Tensor, commit_step: Tensor, step: Tensor, mask_id: int) -> Tensor:
    """Rebuilds the states x_t from final tokens: int64 [B, K, L] from int64 [B, L], integer [B, L], int64 [B, K]."""
    return completion_ids[:, None, :].expand(-1, step.shape[1], -1).masked_fill(masked_at(commit_step, step), mask_id)


def states(tensordict: TensorDictBase, step: Tensor, mask_id: int) -> Tensor:
    """Returns the states x_t of a trajectory, stored or rebuilt.

    Args:
        tensordict: a trajectory [B].
        step: int64 [B, K], the t of each state, from 0 to T; at T the completion is final.
        mask_id: of the policy.

    Returns:
        int64 [B, K, L].
    """
    tokens, stored = tensordict[COMPLETION_IDS], tensordict.get(STEP_STATE_IDS, None)
    if stored is None:
        return state_at(tokens, tensordict[COMMIT_STEP], step, mask_id)
    happened = step < num_valid(tensordict)[:, None]
    found = gather_steps(stored, step.clamp(max=stored.shape[1] - 1)).long()
    return torch.where(happened[..., None], found, tokens[:, None, :])


def canvas_state(tensordict: TensorDictBase, step: Tensor) -> dict[str, Tensor]:
    """Returns what ``Sampler.resume`` must know of states x_t besides their tokens, for steps int64 [B, K].

    Returns:
        For one that draws positions again, ``open`` bool [B, K, L], the positions that are not final yet, and
        ``steps_in_block`` int64 [B, K], the steps since the block began; for a sampler that fills masks, nothing.
    """
    if tensordict.get(STEP_STATE_IDS, None) is None:
        return {}
    still_open = masked_at(tensordict[COMMIT_STEP], step)
    # A block commits all its positions in its last step.
    last = tensordict[COMMIT_STEP][:, None, :].long().masked_fill(still_open, -1).amax(-1)
    return {STATE_OPEN: still_open, STATE_STEPS_IN_BLOCK: step - 1 - last}


def gather_steps(values: Tensor, step: Tensor) -> Tensor:
    """Gathers ``values[b, step[b, k], ...]``: [B, K, ...] from [B, T, ...] and int64 [B, K]."""
    index = step.reshape(*step.shape, *([1] * (values.dim() - 2))).expand(*step.shape, *values.shape[2:])
    return values.gather(1, index)


def num_valid(tensordict: TensorDictBase) -> Tensor:
    """Counts the steps that happened in each row: int64 [B]. They are the first ones, without gaps."""
    return tensordict[STEP_VALID].sum(-1)


def tokens_per_forward(tensordict: TensorDictBase) -> Tensor:
    """Returns the positions committed over the steps that happened, each of which was a forward: float64 [B]."""
    committed = (tensordict[STEP_NUM_COMMITTED] * tensordict[STEP_VALID]).sum(-1)
    return committed.double() / num_valid(tensordict).clamp(min=1)


def every_step(tensordict: TensorDictBase) -> TensorDictBase:
    """Returns a copy in which every step that happened is selected with weight 1; K is T, weight 0 pads."""
    valid = tensordict[STEP_VALID]
    step = torch.arange(valid.shape[1], device=valid.device).expand_as(valid).masked_fill(~valid, 0)
    batch = tensordict.copy()
    return batch.set(SELECTED_STEP, step).set(SELECTED_WEIGHT, valid.to(torch.float64))


def where_used(values: Tensor, mask: Tensor) -> Tensor:
    """Returns ``values`` where ``mask``, else 0; values outside the mask get gradient 0 even if they are not finite."""
    return torch.where(mask, values, 0.0)


def partition(*ids: Tensor) -> Tensor:
    """Numbers the N distinct combinations of ids from 0 to N - 1, in order: int64 [B] from int64 [B] each."""
    number = torch.unique(ids[0], return_inverse=True)[1]
    for column in ids[1:]:  # one by one, as torch sorts numbers many times faster than rows
        values, index = torch.unique(column, return_inverse=True)
        number = torch.unique(number * len(values) + index, return_inverse=True)[1]
    return number


def first_rows(index: Tensor) -> Tensor:
    """Finds the first row that has each number of a ``partition``: int64 [N] from int64 [B]."""
    rows = torch.arange(len(index), device=index.device)
    none = torch.full((int(index.max()) + 1,), len(index), dtype=torch.int64, device=index.device)
    return none.scatter_reduce(0, index, rows, "amin")


def number_in_group(group: Tensor) -> Tensor:
    """Numbers the rows of each group 0, 1, ... in the order of the batch: int64 [B] from groups int64 [B]."""
    ordered, order = group.sort(stable=True)
    number = torch.arange(len(group), device=group.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(order).scatter_(0, order, number)


def group_sum(values: Tensor, group: Tensor) -> Tensor:
    """Sums over the members of each row's group, column by column: [B, ...] from [B, ...] and groups int64 [B]."""
    ids, index = torch.unique(group, return_inverse=True)
    return values.new_zeros(len(ids), *values.shape[1:]).index_add(0, index, values)[index]


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Averages over the members of each row's group, column by column: [B, ...] from [B, ...] and groups int64 [B]."""
    return group_sum(values, group) / group_sum(torch.ones_like(values), group)


def group_max(values: Tensor, group: Tensor) -> Tensor:
    """Finds the largest value in each row's group, column by column: [B, ...] from [B, ...] and groups int64 [B]."""
    ids, index = torch.unique(group, return_inverse=True)
    rows = index.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    most = values.new_full((len(ids), *values.shape[1:]), -torch.inf)
    return most.scatter_reduce(0, rows, values, "amax")[index]


def group_softmax(values: Tensor, group: Tensor) -> Tensor:
    """Takes the softmax over the members of each row's group, column by column: [B, ...], from that and int64 [B]."""
    mass = (values - group_max(values, group)).exp()
    return mass / group_sum(mass, group)


def shuffled(group: Tensor, parts: int, generator: torch.Generator, whole_groups: bool) -> list[Tensor]:
    """Splits a rollout at random into minibatches.

    Args:
        group: int64 [B], of each sample.
        parts: number of minibatches; some are empty if there are fewer samples (or groups).
        generator: on the CPU.
        whole_groups: put all samples of a group into the same minibatch.

    Returns:
        Row indices of each minibatch, int64 each.
    """
    own = group.cpu() if whole_groups else torch.arange(len(group))
    index = torch.unique(own, return_inverse=True)[1]
    place = torch.randperm(int(index.max()) + 1, generator=generator)
    if not whole_groups:
        return [part.to(group.device) for part in place.tensor_split(parts)]
    # Rows by group, groups in random order, cut so that every minibatch gets about as many groups.
    order = place[index].argsort(stable=True)
    bounds = [len(part) for part in place.tensor_split(parts)]
    last_group = torch.tensor(bounds).cumsum(0)
    sizes = [int((place[index] < last).sum()) for last in last_group]
    return [part.to(group.device) for part in order.tensor_split(sizes[:-1])]


def in_one_order(groups: Sequence[Tensor], own: int) -> tuple[Tensor, Tensor]:
    """Puts the samples of several processes, each of which holds whole groups, into the order of a single one.

    Args:
        groups: int64 [b] from each process, ascending.
        own: number of this process.

    Returns:
        The groups of all B samples, int64 [B]; and the row in which this process has each, -1 where another has it.
    """
    everyone = torch.cat(list(groups))
    order = everyone.argsort(stable=True)
    rows = [torch.arange(len(group)) if i == own else torch.full_like(group, -1) for i, group in enumerate(groups)]
    return everyone[order], torch.cat([row.to(everyone.device) for row in rows])[order]


def length_order(batch: TensorDictBase, size: int) -> Tensor | None:
    """Orders rows by the length of their prompts, longest first, so that pieces of ``size`` rows need little padding.

    The sort is stable, so the samples of a group, which share their prompt, stay together.

    Returns:
        int64 [B]; None if nothing is gained: one piece holds all rows, or all prompts have the same length.
    """
    if len(batch) <= size:
        return None
    length = batch[PROMPT_MASK].sum(-1)
    return None if bool((length == length[0]).all()) else length.argsort(descending=True, stable=True)


def cut(batch: TensorDictBase, sizes: int | list[int], order: Tensor | None) -> Iterator[tuple[Tensor, TensorDictBase]]:
    """Cuts a batch into pieces; yields the row indices of each piece and a copy of its rows.

    Args:
        batch: [B].
        sizes: rows of every piece (the last one may be smaller), or a list with the rows of each.
        order: int64 [B], the order in which rows are taken; None: as they are.
    """
    rows = torch.arange(len(batch), device=batch[PROMPT_MASK].device) if order is None else order
    first = 0
    for index in rows.split(sizes):
        yield index, batch[first : first + len(index)].copy() if order is None else batch[index]
        first += len(index)


def restored(pieces: list[B], rows: list[Tensor]) -> B:
    """Undoes ``cut``: joins pieces, tensors or TensorDicts, into one batch in its original order.

    Args:
        pieces: [n, ...] each.
        rows: the row indices of each piece, int64 [n].
    """
    whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    index = torch.cat(rows)
    in_order = len(index) < 2 or bool((index.diff() > 0).all())
    return whole if in_order else whole[index.argsort()]


def micro_batches(minibatch: TensorDictBase, size: int, whole_groups: bool) -> Iterator[tuple[Tensor, TensorDictBase]]:
    """Cuts a minibatch into pieces of at most ``size`` samples with prompts of similar length.

    Yields row indices and copies, as ``cut``. With ``whole_groups`` no group is cut, so that a group of more than
    ``size`` samples is a piece of its own.
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
    """Cuts a micro-batch between segments, into pieces of at most ``most`` segments of non-zero weight, in order.

    Returns:
        For each piece its row indices and a copy of these rows, in which all other segments have weight 0.
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
