r"""The windows of caches: which positions a denoising step computes again (Fast-dLLM, arXiv 2505.22618).

In a model with bidirectional attention every commit changes the keys and values of all positions, so reusing them is an
approximation. A cache computes those in a *window* around the current block in every step; all others it takes from the
*anchor*, the state in which the current block was still all masks:

    anchor(x_t) = x_t with the block of the first masked position masked again

In a rollout this is the state in which the block was begun, so one full forward per block is enough. As the anchor is a
function of x_t, the cached policy mu(. | x_t) is a distribution like any other: its log-probabilities can be recorded,
recomputed and enumerated, and pi / mu corrects what was sampled from it (``dlmrl_kit.corrections``).

A cache may *refresh* within a block. The block is cut into cells of neighbouring positions, and the anchor has those
cells that are complete:

    anchor(x_t) = x_t with those cells of the block of the first masked position masked again that hold a mask

So everything is computed again whenever a cell is complete, at most once for each cell; from left to right that is once
in so many positions. An anchor of so many steps ago would not do: which state that was does not follow from x_t, and no
replay, no shared forward of equal states and no enumeration would know mu. With cells of one position the anchor is x_t
itself, and mu is the policy. Cells of c positions contain those of c / 2, so anchors of smaller ones are nearer to x_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """The anchor and the window of each of B states.

    Attributes:
        anchor: int64 [B, S].
        start, end: int64 [B]; the window is the columns from ``start`` to before ``end``.
    """

    anchor: Tensor
    start: Tensor
    end: Tensor

    def inside(self, row: Tensor, column: Tensor) -> Tensor:
        """Returns which positions, given by row and column int64 [n], are in the window of their row: bool [n]."""
        return (column >= self.start[row]) & (column < self.end[row])


def cell_of(refresh: int | None, block_length: int) -> int:
    """Returns the positions of a cell, at most those of a block; ``refresh`` None: a block is one cell."""
    return block_length if refresh is None else min(refresh, block_length)


@dataclass(frozen=True)
class Window:
    """Finds the window and the anchor of any state of a sampler.

    Args:
        mask_id: of the policy.
        completion_length: L; a state ends with its completion.
        block_length: of the sampler.
        to_end: whether the window reaches to the end of the completion, not only to the end of the block.
        before: positions in front of the block that are in the window, too. A policy with shifted logits needs one,
            from which it predicts the first position of the block.
        refresh: positions of a cell; None: a block is one cell.
    """

    mask_id: int
    completion_length: int
    block_length: int
    to_end: bool = False
    before: int = 0
    refresh: int | None = None

    @property
    def cell(self) -> int:
        """Positions of a cell, at most those of a block."""
        return cell_of(self.refresh, self.block_length)

    @property
    def within(self) -> bool:
        """Whether blocks have several cells, so that there are anchors within a block."""
        return self.cell < self.block_length

    def of(self, input_ids: Tensor) -> Span:
        """Returns anchors and windows of states int64 [B, S], each a prompt and its completion."""
        length, size = self.completion_length, input_ids.shape[1]
        masked = input_ids[:, -length:] == self.mask_id
        block = masked.long().argmax(-1) // self.block_length
        begin = size - length + block * self.block_length
        end = (begin + self.block_length).clamp(max=size)
        column = torch.arange(size, device=input_ids.device)
        own = (column >= begin[:, None]) & (column < end[:, None])
        if self.within:
            own &= self._incomplete(own & (input_ids == self.mask_id), column - begin[:, None])
        last = torch.full_like(end, size) if self.to_end else end
        return Span(input_ids.masked_fill(own, self.mask_id), (begin - self.before).clamp(min=0), last)

    def _incomplete(self, masked: Tensor, place: Tensor) -> Tensor:
        """Returns which positions are in a cell that holds a mask: bool [B, S].

        Args:
            masked: bool [B, S], the masks of the block of each row.
            place: int64 [B, S], positions from the begin of the block on; outside of the block it may be anything.
        """
        number = -(-self.block_length // self.cell)
        cell = (place // self.cell).clamp(0, number - 1)
        holds = torch.zeros(len(masked), number, dtype=torch.int64, device=masked.device)
        return holds.scatter_add(1, cell, masked.long()).gather(1, cell) > 0
