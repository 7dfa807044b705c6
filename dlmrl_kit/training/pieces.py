"""How a rollout is cut: into minibatches, micro-batches of samples, and pieces of a sample's slots."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDictBase
from torch import Tensor

WEIGHT = ("selected", "weight")


def shuffled(trajectory: TensorDictBase, parts: int, generator: torch.Generator, whole_groups: bool) -> list[Tensor]:
    """Row indices of each minibatch, in random order: int64 each.

    Args:
        trajectory: [B].
        parts: how many; some are empty where there are fewer samples (groups) than parts.
        generator: on the CPU.
        whole_groups: keep the samples of a group together.
    """
    group = trajectory["group"].cpu() if whole_groups else torch.arange(len(trajectory))
    index = torch.unique(group, return_inverse=True)[1]
    place = torch.randperm(int(index.max()) + 1, generator=generator)
    if not whole_groups:
        return [part.to(trajectory.device) for part in place.tensor_split(parts)]
    order = place[index].argsort(stable=True)
    bounds = [len(part) for part in place.tensor_split(parts)]
    last_group = torch.tensor(bounds).cumsum(0)
    sizes = [int((place[index] < last).sum()) for last in last_group]
    return [part.to(trajectory.device) for part in order.tensor_split(sizes[:-1])]


def micro_batches(minibatch: TensorDictBase, size: int, whole_groups: bool) -> Iterator[TensorDictBase]:
    """Copies of at most ``size`` samples each; with ``whole_groups``, at least one group, groups never cut."""
    if not whole_groups:
        yield from (micro.copy() for micro in minibatch.split(size))
        return
    counts = torch.unique_consecutive(minibatch["group"], return_counts=True)[1].tolist()
    first = rows = 0
    for count in counts:
        if rows and rows + count > size:
            yield minibatch[first : first + rows].copy()
            first, rows = first + rows, 0
        rows += count
    if rows:
        yield minibatch[first : first + rows].copy()


def slot_pieces(micro: TensorDictBase, slots: int) -> list[tuple[Tensor, TensorDictBase]]:
    """A micro-batch cut into pieces of at most ``slots`` used slots, in order.

    Returns:
        Row indices and a copy of these rows, in which the weights of the slots of other pieces are 0.
    """
    weight = micro[WEIGHT]
    used = weight != 0
    number = used.flatten().long().cumsum(0).reshape(used.shape) - 1
    piece = torch.where(used, number // slots, -1)
    found = []
    for i in range(int(piece.max()) + 1 if used.any() else 0):
        mine = piece == i
        rows = mine.any(-1).nonzero().squeeze(-1)
        part = micro[rows].copy()
        part.set(WEIGHT, torch.where(mine, weight, 0.0)[rows])
        found.append((rows, part))
    return found
