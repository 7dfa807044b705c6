"""Keys and values of finished blocks, for block-causal models: exact reuse, because later blocks never change them.

Entries are found by content. For each row the entry with the most leading blocks of the same tokens is used, whatever
row or step it came from; what is missing is computed and kept. So a sampler needs to say nothing: while it goes through
the steps of a block only that block is computed, and the first step of the next block adds the one that was finished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dlmrl_kit.policies.block_causal import BlockCausalPolicy


class FinishedBlocks:
    """Tokens of E prefixes with their keys and values in every layer; valid for one set of weights.

    Args:
        block_size: prefixes are cached in whole blocks.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.tokens: Tensor | None = None
        """int64 [E, N]"""
        self.length: Tensor | None = None
        """int64 [E], cached tokens of each entry"""
        self.layers: list[tuple[Tensor, Tensor]] = []
        """keys and values of each layer, [E, H, N, D]"""

    def hidden_at(
        self, policy: BlockCausalPolicy, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor
    ) -> Tensor:
        """Final hidden states at the asked places, of which each row computes its uncached blocks only.

        Args:
            policy: runs the model.
            input_ids, attention_mask: int64 and bool [B, S].
            row, column: int64 [...], the places.

        Returns:
            [..., D].
        """
        if row.numel() == 0:
            return policy.model.get_input_embeddings()(row)
        position = attention_mask.long().cumsum(-1) - 1
        tokens = torch.zeros_like(input_ids).scatter(1, position.clamp(min=0), input_ids * attention_mask)
        asked = position[row, column]
        finished, end = self._bounds(row, asked, attention_mask.sum(-1))
        start = self._match(tokens, finished)
        query, in_query = _window(start, end)
        key_block = self._key_blocks(start, query, in_query)
        block = query // self.block_size
        past = self._past()
        hidden = policy.attend(
            tokens.gather(1, query.clamp(max=tokens.shape[1] - 1)),
            query,
            block[:, :, None] >= key_block[:, None, :],
            key_block,
            past,
        )
        self._keep(past, tokens, start, finished)
        return hidden[row, asked - start[row]]

    def _bounds(self, row: Tensor, asked: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """For each row, where the first asked block begins and the last one ends: int64 [B] each."""
        size = self.block_size
        first = length.clone().scatter_reduce(0, row.flatten(), asked.flatten(), "amin")
        last = torch.full_like(length, -1).scatter_reduce(0, row.flatten(), asked.flatten(), "amax")
        finished = torch.where(last < 0, 0, first // size * size)
        return finished, torch.minimum((last // size + 1) * size, length).clamp(min=0)

    def _match(self, tokens: Tensor, finished: Tensor) -> Tensor:
        """Brings the entries into the order of the rows; tokens of each row that are cached, at most ``finished``."""
        if self.tokens is None or self.length is None:
            return torch.zeros_like(finished)
        width = min(self.tokens.shape[1], tokens.shape[1])
        if len(tokens) == len(self.tokens):
            depth = self._depth(tokens[:, :width] == self.tokens[:, :width], self.length)
            if bool((depth >= torch.minimum(self.length, finished)).all()):  # the same rows as last time
                return torch.minimum(depth, finished)
        same = tokens[:, None, :width] == self.tokens[None, :, :width]
        depth, source = self._depth(same, self.length).max(dim=1)
        self.tokens, self.length = self.tokens[source], self.length[source]
        self.layers = [(keys[source], values[source]) for keys, values in self.layers]
        return torch.minimum(depth, finished)

    def _depth(self, same: Tensor, length: Tensor) -> Tensor:
        """Leading tokens in common, in whole blocks: [...] from bool [..., N]."""
        common = same.long().cumprod(-1).sum(-1)
        return torch.minimum(common, length) // self.block_size * self.block_size

    def _key_blocks(self, start: Tensor, query: Tensor, in_query: Tensor) -> Tensor:
        """Block of each key, cached ones first: int64 [B, N + Q]; -1 where there is none."""
        cached = 0 if self.tokens is None else self.tokens.shape[1]
        column = torch.arange(cached, device=start.device)
        old = torch.where(column < start[:, None], column // self.block_size, -1)
        return torch.cat([old, torch.where(in_query, query // self.block_size, -1)], dim=1)

    def _past(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(self.layers or None)

    def _keep(self, past: Any, tokens: Tensor, start: Tensor, finished: Tensor) -> None:
        """Adds the blocks before the asked ones, which were computed just now."""
        if bool((finished <= start).all()):
            return
        cached = 0 if self.tokens is None else self.tokens.shape[1]
        width = int(finished.max())
        column = torch.arange(width, device=start.device)
        source = torch.where(column < start[:, None], column, cached + column - start[:, None])
        source = torch.where(column < finished[:, None], source, 0)[:, None, :, None]
        self.layers = [
            tuple(
                part.gather(2, source.expand(-1, part.shape[1], -1, part.shape[3]))
                for part in (layer.keys, layer.values)
            )
            for layer in past.layers
        ]
        self.tokens, self.length = tokens[:, :width], finished


def _window(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Positions from ``start`` to before ``end`` of each row, and which are no padding: int64 and bool [B, Q]."""
    width = int((end - start).max())
    query = start[:, None] + torch.arange(width, device=start.device)
    return query, query < end[:, None]
