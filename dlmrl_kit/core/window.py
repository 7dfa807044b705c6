r"""The windows of caches: which positions a denoising step computes again (Fast-dLLM, arXiv 2505.22618).

In a model with bidirectional attention every commit changes the keys and values of all positions, so reusing them is an
approximation. A cache computes those in a *window* around the current block in every step; all others it takes from the
*anchor*, the state in which the current block was still all masks:

    anchor(x_t) = x_t with the block of the first masked position masked again

In a rollout this is the state in which the block was begun, so one full forward per block is enough. As the anchor is a
function of x_t, the cached policy mu(. | x_t) is a distribution like any other: its log-probabilities can be recorded,
recomputed and enumerated, and pi / mu corrects what was sampled from it (``dlmrl_kit.corrections``).
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
    """

    mask_id: int
    completion_length: int
    block_length: int
    to_end: bool = False
    before: int = 0

    def of(self, input_ids: Tensor) -> Span:
        """Returns anchors and windows of states int64 [B, S], each a prompt and its completion."""
        length, size = self.completion_length, input_ids.shape[1]
        masked = input_ids[:, -length:] == self.mask_id
        block = masked.long().argmax(-1) // self.block_length
        begin = size - length + block * self.block_length
        end = (begin + self.block_length).clamp(max=size)
        column = torch.arange(size, device=input_ids.device)
        own = (column >= begin[:, None]) & (column < end[:, None])
        last = torch.full_like(end, size) if self.to_end else end
        return Span(input_ids.masked_fill(own, self.mask_id), (begin - self.before).clamp(min=0), last)
