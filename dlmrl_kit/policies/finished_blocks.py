"""Keys and values of finished blocks, for block-causal models: exact reuse, because later blocks never change them.

Entries are found by content. For each row the entry with the most leading blocks of the same tokens is used, whatever
row or step it came from; what is missing is computed and kept. So a sampler need not say which row is which: while it
goes through the steps of a block only that block is computed, and the first step of the next block adds the one that
was finished. What many rows lack alike, such as the prompt of a group, is computed once for all of them. Tokens are
counted from the first real one, so that padding plays no part. Prefixes are compared and places worked out on the CPU
(``core.trajectory.on_host``), so that a step need not wait for a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dlmrl_kit.core.trajectory import first_rows, on_device, on_host

if TYPE_CHECKING:
    from transformers import Cache, DynamicCache

PADDING = -1
"""Block of a padding position."""


class Attend(Protocol):
    """Runs the model; see ``BlockCausalPolicy.attend``."""

    def __call__(
        self,
        input_ids: Tensor,
        position: Tensor,
        earlier: Tensor,
        key_block: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """Returns final hidden states [B, Q, D], and adds keys and values to ``cache``."""


class FinishedBlocks:
    """Holds the tokens of E prefixes with their keys and values in every layer. It is valid for one set of weights.

    Args:
        block_size: prefixes are cached in whole blocks.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.tokens: Tensor | None = None
        """The prefixes, int64 [E, N], on the CPU."""
        self.length: Tensor | None = None
        """How many of its tokens are cached for each entry, int64 [E], on the CPU."""
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer, [E, H, N, D] each."""

    def hidden_at(
        self, attend: Attend, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor
    ) -> Tensor:
        """Computes final hidden states at the asked places; for each row only the blocks that are not cached.

        Args:
            attend: runs the model.
            input_ids, attention_mask: int64 and bool [B, S].
            row, column: int64 [...], the places, one at least.

        Returns:
            [..., D].
        """
        device, ids, real = input_ids.device, on_host(input_ids), on_host(attention_mask)
        row, column = torch.broadcast_tensors(on_host(row), on_host(column))
        position = real.long().cumsum(-1) - 1
        tokens = torch.zeros_like(ids).scatter(1, position.clamp(min=0), ids * real)
        asked = position[row, column]
        finished, end = self._bounds(row, asked, real.sum(-1))
        start = self._match(tokens, finished)
        if bool((finished > start).any()):
            start = self._share(attend, tokens, start, finished, end, device)
        hidden = self._compute(attend, tokens, start, end, finished, device)
        return hidden[on_device(row, device), on_device(asked - start[row], device)]

    def _share(
        self, attend: Attend, tokens: Tensor, start: Tensor, finished: Tensor, end: Tensor, device: torch.device
    ) -> Tensor:
        """Computes what rows lack alike once for all of them, if that halves what is computed.

        Arguments as ``_compute``. Returns how many tokens of each row are cached now, int64 [B].
        """
        first = _furthest_alike(tokens, finished, start)
        missing = _most((finished - start)[first])
        alone, shared = len(tokens) * _most(end - start), len(first) * missing
        if missing and 2 * (shared + len(tokens) * _most(end - finished)) > alone:  # a forward more has its price, too
            return start
        self._pick(first)
        if missing:
            self._compute(attend, tokens[first], start[first], finished[first], finished[first], device)
        return self._match(tokens, finished)

    def _compute(
        self, attend: Attend, tokens: Tensor, start: Tensor, end: Tensor, finished: Tensor, device: torch.device
    ) -> Tensor:
        """Runs the model from ``start`` to ``end`` of each row, int64 [B] each, and keeps what is ``finished``.

        Returns:
            Final hidden states [B, Q, D], each row's from its ``start``.
        """
        query, in_query = _window(start, end)
        inputs = tokens.gather(1, query.clamp(max=tokens.shape[1] - 1))
        key_block = on_device(self._key_blocks(start, query, in_query), device)
        inputs, query, block = (on_device(part, device) for part in (inputs, query, query // self.block_size))
        past = self._past()
        hidden = attend(inputs, query, block[:, :, None] >= key_block[:, None, :], key_block, past)
        self._keep(past, tokens, start, finished)
        return hidden

    def _bounds(self, row: Tensor, asked: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where the first asked block of each row begins and the last ends: int64 [B] each, 0 if none is."""
        size = self.block_size
        first = length.clone().scatter_reduce(0, row.flatten(), asked.flatten(), "amin")
        last = torch.full_like(length, -1).scatter_reduce(0, row.flatten(), asked.flatten(), "amax")
        finished = torch.where(last < 0, 0, first // size * size)
        return finished, torch.minimum((last // size + 1) * size, length).clamp(min=0)

    def _match(self, tokens: Tensor, finished: Tensor) -> Tensor:
        """Brings the entries into the order of the rows; returns how many tokens of each row are cached, int64 [B].

        Args:
            tokens: int64 [B, N], without padding at the left.
            finished: int64 [B], as many are wanted at most.
        """
        if self.tokens is None or self.length is None:
            return torch.zeros_like(finished)
        width = min(self.tokens.shape[1], tokens.shape[1])
        if len(tokens) == len(self.tokens):
            depth = self._depth(tokens[:, :width] == self.tokens[:, :width], self.length)
            if bool((depth >= torch.minimum(self.length, finished)).all()):  # the same rows as last time
                return torch.minimum(depth, finished)
        same = tokens[:, None, :width] == self.tokens[None, :, :width]
        depth, source = self._depth(same, self.length).max(dim=1)
        self._pick(source)
        return torch.minimum(depth, finished)

    def _pick(self, source: Tensor) -> None:
        """Makes the entries ``source`` (int64 [B]) the entries of the rows, in this order."""
        if self.tokens is None or self.length is None:
            return
        there = on_device(source, self.layers[0][0].device)
        self.tokens, self.length = self.tokens[source], self.length[source]
        self.layers = [(keys[there], values[there]) for keys, values in self.layers]

    def _depth(self, same: Tensor, length: Tensor) -> Tensor:
        """Counts leading tokens in common, in whole blocks: int64 [...] from bool [..., N]."""
        common = same.long().cumprod(-1).sum(-1)
        return torch.minimum(common, length) // self.block_size * self.block_size

    def _key_blocks(self, start: Tensor, query: Tensor, in_query: Tensor) -> Tensor:
        """Returns the block of each key, cached ones first: int64 [B, N + Q]; ``PADDING`` where there is none."""
        cached = 0 if self.tokens is None else self.tokens.shape[1]
        column = torch.arange(cached, device=start.device)
        old = torch.where(column < start[:, None], column // self.block_size, PADDING)
        return torch.cat([old, torch.where(in_query, query // self.block_size, PADDING)], dim=1)

    def _past(self) -> DynamicCache:
        """Returns what is cached, as transformers takes it."""
        from transformers import DynamicCache

        return DynamicCache(self.layers or None)

    def _keep(self, past: DynamicCache, tokens: Tensor, start: Tensor, finished: Tensor) -> None:
        """Adds the blocks before the asked ones, which were computed just now.

        Args:
            past: keys and values of the cached blocks and of those that were computed.
            tokens: int64 [B, N], without padding at the left.
            start: int64 [B], how many tokens of each row were cached.
            finished: int64 [B], how many are to be.
        """
        from transformers.cache_utils import DynamicLayer

        if bool((finished <= start).all()):
            return
        cached = 0 if self.tokens is None else self.tokens.shape[1]
        width = int(finished.max())
        column = torch.arange(width, device=start.device)
        source = torch.where(column < start[:, None], column, cached + column - start[:, None])
        source = torch.where(column < finished[:, None], source, 0)[:, None, :, None]
        self.layers = []
        for layer in past.layers:
            assert isinstance(layer, DynamicLayer), "full attention in every layer"
            assert layer.keys is not None
            assert layer.values is not None
            there = on_device(source, layer.keys.device)
            self.layers.append((_gathered(layer.keys, there), _gathered(layer.values, there)))
        self.tokens, self.length = tokens[:, :width], finished


def _furthest_alike(tokens: Tensor, length: Tensor, start: Tensor) -> Tensor:
    """Returns one row of each kind, int64 [U]: rows are alike whose first ``length`` tokens are the same.

    Args:
        tokens: int64 [B, N].
        length: int64 [B].
        start: int64 [B]; of rows that are alike it is one with the largest.
    """
    behind = torch.arange(tokens.shape[1]) >= length[:, None]
    kind = torch.unique(tokens.masked_fill(behind, -1), dim=0, return_inverse=True)[1]
    order = start.argsort(descending=True, stable=True)
    return order[first_rows(kind[order])]


def _most(count: Tensor) -> int:
    """Returns the largest of some counts, int64 [B]."""
    return int(count.max())


def _gathered(part: Tensor, source: Tensor) -> Tensor:
    """Returns the columns ``source``, int64 [B, 1, W, 1], of keys or values [B, H, N, D]: [B, H, W, D]."""
    return part.gather(2, source.expand(-1, part.shape[1], -1, part.shape[3]))


def _window(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the positions from ``start`` to before ``end`` of each row, int64 [B, Q], and which are: bool [B, Q]."""
    width = int((end - start).max())
    query = start[:, None] + torch.arange(width, device=start.device)
    return query, query < end[:, None]
