"""States of block-causal models that begin alike, packed so that what they share is computed once, with gradients.

A position depends on its own block and on those before it alone. So what comes behind the last asked block of a state
need not be computed, and states are branches of a tree: those whose first n blocks hold the same tokens have the same
keys, values and hidden states there. The K states of a sample share its prompt and the blocks that were finished in
both, the samples of a group their prompt. A sequence here is such a tree, block by block: a position sees its own block
and those on the way to the root. Nothing is approximate, and the backward pass adds up what flows back from all
branches.

Models that attend both ways have nothing of it: any token that changes changes every position in every layer but the
first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlmrl_kit.core.trajectory import bring, on_device, on_host
from dlmrl_kit.policies.finished_blocks import PADDING

LONGEST = 4096
"""Tokens of a sequence of several states at most: its attention mask has their square."""


@dataclass(frozen=True)
class Packing:
    """M sequences of N tokens, made of the blocks of different states, which are numbered as they follow each other.

    Attributes:
        tokens, position: int64 [M, N], and where a token is in its state; 0 at padding.
        block: int64 [M, N], its block; ``PADDING`` where there is none.
        first, end: int64 [M, N], the states that have this block and all before it: from one to before another. The
            first is the one that the block was packed for.
        row, column: int64 [...], where the asked places are.
    """

    tokens: Tensor
    position: Tensor
    block: Tensor
    first: Tensor
    end: Tensor
    row: Tensor
    column: Tensor

    def earlier(self) -> Tensor:
        """Returns which keys a query sees: bool [M, N, N]. At padding it says anything."""
        state, key = self.first[:, :, None], (slice(None), None)
        return (self.block[key] <= self.block[:, :, None]) & (self.first[key] <= state) & (state < self.end[key])


def packing(
    input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor, block_size: int, hidden_size: int
) -> Packing:
    """Packs the blocks that asked places depend on.

    Args:
        input_ids, attention_mask: int64 and bool [B, S], states, padded at the left.
        row, column: int64 [...], the places, one at least.
        block_size: positions of a block, counted from the first real token.
        hidden_size: of the model, for ``first_of_sequences``.

    Returns:
        Tensors on the device of ``input_ids``, worked out on the CPU.
    """
    bring(input_ids, attention_mask)
    device, ids, real = input_ids.device, on_host(input_ids), on_host(attention_mask)
    row, column = torch.broadcast_tensors(on_host(row), on_host(column))
    asked = (real.long().cumsum(-1) - 1)[row, column]
    # Sorted, so that each state follows the one that it shares most with.
    states, which = torch.unique(needed(ids, real, row, asked, block_size), dim=0, return_inverse=True)
    length, shared = (states != PADDING).sum(-1), shared_tokens(states, block_size)
    first = torch.tensor(first_of_sequences(length.tolist(), shared.tolist(), hidden_size))
    shared = shared.masked_fill(first, 0)
    own = length - shared
    sequence, begin = first.cumsum(0) - 1, own.cumsum(0) - own
    begin = begin - begin[first][sequence] - shared  # where position 0 of a state would be in its sequence

    place = torch.arange(states.shape[1])
    state, where = ((place >= shared[:, None]) & (place < length[:, None])).nonzero(as_tuple=True)
    there = (sequence[state], begin[state] + where)
    blank = torch.zeros(int(sequence[-1]) + 1, int(there[1].max()) + 1, dtype=torch.int64)
    number = torch.arange(len(states))[:, None]
    packed = torch.arange(0, states.shape[1], block_size) >= shared[:, None]  # [U, blocks]: for this state
    owner = number.where(packed, -1).cummax(0).values
    later = number.where(packed, len(states)).flip(0).cummin(0).values.flip(0)  # the next one, itself included
    later = torch.cat([later[1:], torch.full_like(later[:1], len(states))])
    of_asked = owner[which[row], asked // block_size]

    def put(values: Tensor, behind: int = 0) -> Tensor:
        return on_device((blank + behind).index_put(there, values), device)

    return Packing(
        tokens=put(states[state, where]),
        position=put(where),
        block=put(where // block_size, PADDING),
        first=put(state),
        end=put(later[state, where // block_size]),
        row=on_device(sequence[of_asked], device),
        column=on_device(begin[of_asked] + asked, device),
    )


def needed(ids: Tensor, real: Tensor, row: Tensor, asked: Tensor, block_size: int) -> Tensor:
    """Returns the tokens of states up to the last asked block, from the first real one, ``PADDING`` behind: [B, S].

    Args:
        ids, real: int64 and bool [B, S], padded at the left.
        row, asked: int64 [...], the asked places; positions are counted from the first real token.
        block_size: positions of a block.
    """
    position = real.long().cumsum(-1) - 1
    last = torch.full_like(position[:, 0], -1).scatter_reduce(0, row.flatten(), asked.flatten(), "amax")
    end = torch.minimum((last // block_size + 1) * block_size, real.sum(-1))
    tokens = torch.zeros_like(ids).scatter(1, position.clamp(min=0), ids * real)
    return tokens.masked_fill(torch.arange(ids.shape[1]) >= end[:, None], PADDING)


def shared_tokens(states: Tensor, block_size: int) -> Tensor:
    """Counts the leading tokens, in whole blocks, of each of U states that the one before it has: int64 [U]."""
    alike = (states[1:] == states[:-1]) & (states[1:] != PADDING)
    return torch.cat([torch.zeros(1, dtype=torch.int64), alike.long().cumprod(-1).sum(-1) // block_size * block_size])


def first_of_sequences(length: list[int], shared: list[int], hidden_size: int) -> list[bool]:
    """Chooses which of U states begin a new sequence rather than go on with that of the state before.

    A token that is shared saves matrix products, but attention is computed between all tokens of a sequence. A layer of
    a usual transformer multiplies each of N tokens 12 D^2 times, and 2 D times with each of the N: N (6 D + N) in all,
    up to a factor. A state goes on where that adds no more than a sequence of its own would cost, up to ``LONGEST``.

    Args:
        length: tokens of each state.
        shared: how many of them, in whole blocks, are those of the state before.
        hidden_size: D.
    """
    found: list[bool] = []
    tokens = 0
    for whole, same in zip(length, shared, strict=True):
        new = whole - same
        dearer = new * (6 * hidden_size + 2 * tokens + new) > whole * (6 * hidden_size + whole)
        found.append(same == 0 or dearer or tokens + new > LONGEST)
        tokens = whole if found[-1] else tokens + new
    return found
