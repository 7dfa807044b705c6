"""How a batch is cut: into minibatches, micro-batches of samples, and pieces of a sample's selected segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import GROUP, PROMPT_MASK, SELECTED_WEIGHT

B = TypeVar("B", Tensor, TensorDictBase)


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
