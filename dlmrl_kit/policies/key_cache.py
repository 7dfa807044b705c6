"""Keys and values outside of the current block, as they were when the block was begun: see ``dlmrl_kit.core.window``.

This is for the decoders of ``last_layer``. Entries are found by content, so that a sampler need not say which row is
which, and rows may be at different blocks, end, or start again: a state whose anchor is known computes its window only,
and any other state has its anchor computed first. Anchors are compared and places worked out on the CPU
(``core.trajectory.on_host``), so that a step need not wait for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.core.trajectory import on_device, on_host, taken
from dlmrl_kit.core.window import Span, Window
from dlmrl_kit.policies.last_layer import Decoder, attended, entered, keys_values, positions, queries, query_heads

PADDING = -1
"""What stands for a token in an anchor where there is padding."""


class KeyCache:
    """Has one entry for each row that was asked last. It is valid for one set of weights.

    Args:
        window: which positions a step computes again.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.key: Tensor | None = None
        """The anchors of the E entries, int64 [E, S], on the CPU; ``PADDING`` at padding."""
        self.entries: list[Tensor] = []
        """Keys and values of each layer in turn, [E, G, S, D / H] each; then the states below, if there are any."""
        self.with_states = False
        """Whether final hidden states of the anchors, [E, S, D], are kept, once a place outside a window was asked."""

    def hidden_at(
        self, body: Decoder, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor
    ) -> Tensor:
        """Computes the final hidden states [..., D] of the cached policy at the places (row, column), int64 [...] each.

        Args:
            body: a decoder for which ``prunable`` holds.
            input_ids, attention_mask: int64 and bool [B, S], prompt and completion; B at least 1.
            row, column: the places; they broadcast.
        """
        row, column = torch.broadcast_tensors(on_host(row), on_host(column))
        shape, row, column = row.shape, row.flatten(), column.flatten()
        span, device = self.window.of(on_host(input_ids)), input_ids.device
        inside = span.inside(row, column)
        if self.window.within:  # what is its own anchor is computed with it
            inside &= (span.anchor != on_host(input_ids)).any(-1)[row]
        outside = ~inside
        if bool(outside.any()) and not self.with_states:  # the entries so far have none: they are computed again
            self.key, self.with_states = None, True
        self._begin(body, span, attention_mask)
        out = body.norm.weight.new_empty(len(row), body.config.hidden_size)
        width = (span.end - span.start)[row]
        for size in width[inside].unique().tolist():  # one, unless rows are at a last block that is shorter
            asked = inside & (width == size)
            found = self._window(body, input_ids, attention_mask, span, row[asked], column[asked], size)
            out[on_device(asked.nonzero().squeeze(-1), device)] = found
        if self.with_states:
            places = (on_device(part[outside], device) for part in (torch.arange(len(row)), row, column))
            place, at_row, at_column = places
            out[place] = self.entries[-1][at_row, at_column]
        return out.view(*shape, -1)

    def _begin(self, body: Decoder, span: Span, attention_mask: Tensor) -> None:
        """Makes the entries those of the rows, in their order; anchors without one are computed, equal ones once."""
        key, device = span.anchor.masked_fill(~on_host(attention_mask), PADDING), attention_mask.device
        index = self._find(key)
        new = (index < 0).nonzero().squeeze(-1)
        kept = index[index >= 0]
        if len(new) == 0:
            if self.key is None or len(kept) != len(self.key) or bool((kept.diff() != 1).any()):
                self.entries = _at(self.entries, kept)
        else:
            different, copy = torch.unique(key[new], dim=0, return_inverse=True)
            first = new.new_full((len(different),), len(key)).scatter_reduce(0, copy, new, "amin")  # a row of each
            mask = taken(attention_mask, on_device(first, device))
            fresh = anchor_states(body, on_device(span.anchor[first], device), mask, self.with_states)
            order = ((index >= 0).cumsum(0) - 1).index_put((new,), len(kept) + copy)
            old = _at(self.entries, kept) if len(kept) else [values[:0] for values in fresh]
            self.entries = _at([torch.cat(pair) for pair in zip(old, fresh, strict=True)], order)
        self.key = key

    def _find(self, key: Tensor) -> Tensor:
        """Returns the entry of each row, int64 [B]; -1 where there is none."""
        self._narrow(key.shape[1])
        if self.key is None or self.key.shape[1] != key.shape[1]:
            return torch.full_like(key[:, 0], -1)
        if torch.equal(self.key, key):
            return torch.arange(len(key))
        same = (key[:, None] == self.key).all(-1)
        return torch.where(same.any(-1), same.long().argmax(-1), -1)

    def _narrow(self, width: int) -> None:
        """Drops columns at the left, where sequences have become shorter, and the entries that are not padding there.

        Samplers leave out columns that are padding in every row, and there are more of them once the rows with long
        prompts are finished.
        """
        cut = 0 if self.key is None else self.key.shape[1] - width
        if self.key is None or cut <= 0:
            return
        fits = (self.key[:, :cut] == PADDING).all(-1)
        self.key = self.key[fits, cut:] if bool(fits.any()) else None
        kept = fits.nonzero().squeeze(-1)
        self.entries = [values.narrow(-2, cut, width) for values in _at(self.entries, kept)]

    def _window(
        self,
        body: Decoder,
        input_ids: Tensor,
        attention_mask: Tensor,
        span: Span,
        row: Tensor,
        column: Tensor,
        size: int,
    ) -> Tensor:
        """Returns the final hidden states [n, D] at n places inside the windows of their rows, each of ``size``."""
        rows, number = row.unique(return_inverse=True)
        columns = span.start[rows, None] + torch.arange(size)
        query, index = queries(number, column - span.start[row], len(rows))
        entries = self.entries
        if len(rows) < len(input_ids):  # copies, whose windows are written and then forgotten
            entries = _at(entries, rows)
        given = (rows, columns, query, number, index)
        rows, columns, query, number, index = (on_device(part, input_ids.device) for part in given)
        tokens, mask = input_ids[rows].gather(1, columns), taken(attention_mask, rows)
        return window_states(body, tokens, mask, columns, query, entries)[number, index]


def _at(entries: list[Tensor], rows: Tensor) -> list[Tensor]:
    """Returns some rows (int64 [n], on the CPU) of each tensor."""
    return [values[on_device(rows, values.device)] for values in entries]


def anchor_states(body: Decoder, input_ids: Tensor, attention_mask: Tensor, with_states: bool) -> list[Tensor]:
    """Computes keys and values of each layer for whole sequences, [B, G, S, D / H] each, in turn.

    Args:
        body: a decoder for which ``prunable`` holds.
        input_ids, attention_mask: int64 and bool [B, S].
        with_states: return the final hidden states [B, S, D], too. Without them, the last layer is not computed beyond
            its keys and values.
    """
    hidden, rotary, mask = entered(body, input_ids, positions(attention_mask), attention_mask)
    found: list[Tensor] = []
    for layer in body.layers:
        normed = layer.input_layernorm(hidden)
        own = keys_values(layer, normed, rotary)
        found += own
        if with_states or layer is not body.layers[-1]:
            hidden = attended(layer, hidden, query_heads(layer, normed, rotary), own, mask)
    return [*found, body.norm(hidden)] if with_states else found


def window_states(
    body: Decoder, tokens: Tensor, attention_mask: Tensor, columns: Tensor, query: Tensor, entries: list[Tensor]
) -> Tensor:
    """Computes final hidden states [B, M, D] at some positions of a window, which sees all other keys and values.

    Args:
        body: a decoder for which ``prunable`` holds.
        tokens, columns: int64 [B, W], of the window.
        attention_mask: bool [B, S].
        query: int64 [B, M], the positions within the window.
        entries: keys and values of each layer in turn, [B, G, S, D / H] each; those of the window are replaced.
    """
    hidden, rotary, mask = entered(body, tokens, positions(attention_mask).gather(1, columns), attention_mask)
    for number, layer in enumerate(body.layers):
        normed = layer.input_layernorm(hidden)
        keys, values = entries[2 * number], entries[2 * number + 1]
        for whole, part in zip((keys, values), keys_values(layer, normed, rotary), strict=True):
            whole.scatter_(2, columns[:, None, :, None].expand_as(part), part)
        last = query if layer is body.layers[-1] else None
        hidden = attended(layer, hidden, query_heads(layer, normed, rotary, last), (keys, values), mask, last)
    return body.norm(hidden)
