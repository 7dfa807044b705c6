r"""Caches: which positions a denoising step computes again, for models that attend both ways (arXiv 2505.22618).

With attention in both directions every commit changes the keys and values of all positions, so reusing them is an
approximation. A cache takes those outside a *window* around the current block from the state in which that block was
still all masks, its *anchor*:

    anchor(x_t) = x_t with the block of the first masked position masked again

In a rollout that is the state in which the block was begun, so that one full forward per block suffices. But it is a
function of x_t: the cached policy mu(. | x_t) is a distribution like any other, its log-probabilities can be recorded,
recomputed and enumerated, and pi / mu corrects what was sampled from it (``dlmrl_kit.corrections``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Of each state: ``anchor`` int64 [B, S]; the window is the columns from ``start`` to before ``end``, int64 [B]."""

    anchor: Tensor
    start: Tensor
    end: Tensor

    def inside(self, row: Tensor, column: Tensor) -> Tensor:
        """Whether places, int64 [n] each, are in the windows of their rows: bool [n]."""
        return (column >= self.start[row]) & (column < self.end[row])


@dataclass(frozen=True)
class Window:
    """The windows of a sampler's states.

    Args:
        mask_id: of the policy.
        completion_length: L; a state ends with its completion.
        block_length: as the sampler's.
        to_end: whether the window reaches to the end of the completion, or to the end of the block.
        before: positions in front of the block that are in the window too (a policy that shifts its logits predicts
            the first position of the block from one).
    """

    mask_id: int
    completion_length: int
    block_length: int
    to_end: bool = False
    before: int = 0

    def of(self, input_ids: Tensor) -> Span:
        """Anchors and windows of states: int64 [B, S], prompt and completion."""
        length, size = self.completion_length, input_ids.shape[1]
        masked = input_ids[:, -length:] == self.mask_id
        block = masked.long().argmax(-1) // self.block_length
        begin = size - length + block * self.block_length
        end = (begin + self.block_length).clamp(max=size)
        column = torch.arange(size, device=input_ids.device)
        own = (column >= begin[:, None]) & (column < end[:, None])
        last = torch.full_like(end, size) if self.to_end else end
        return Span(input_ids.masked_fill(own, self.mask_id), (begin - self.before).clamp(min=0), last)
