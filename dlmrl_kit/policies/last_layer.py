"""The last layer at the asked places only: its keys and values are needed everywhere, its queries and MLP are not.

Exact up to rounding, with and without gradients. For the decoders whose layers are known, attending both ways.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

DECODERS = ("LlamaModel", "Qwen2Model", "Qwen3Model")
"""Classes of transformers with layers of this form: attention and MLP, each behind a norm, with rotary positions."""

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the positions."""


def prunable(model: Any) -> bool:
    """Whether ``last_layer_at`` computes what the model does: a known class, attending both ways everywhere.

    Layers that ``fully_shard`` wrapped are used as they are: their parts have no weights by themselves. So are those of
    a model in training mode, which may drop out.
    """
    if model.training:
        return False
    body: Any = model.get_decoder() if hasattr(model, "get_decoder") else None
    if type(body).__name__ not in DECODERS or type(body.layers[-1]).__name__.startswith("FSDP"):
        return False
    config = body.config
    full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    return full and getattr(config, "is_causal", True) is False and config._attn_implementation == "sdpa"


def last_layer_at(body: Any, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Final hidden states of a decoder at some places.

    Args:
        body: a decoder for which ``prunable`` holds.
        input_ids, attention_mask: int64 and bool [B, S], B at least 1; rotary positions count the real tokens.
        row, column: int64 [...], the places; they broadcast.

    Returns:
        [..., D].
    """
    row, column = torch.broadcast_tensors(row, column)
    query, slot = queries(row.reshape(-1), column.reshape(-1), len(input_ids))
    position = positions(attention_mask)
    hidden, rotary, mask = entered(body, input_ids, position, attention_mask)
    shared = {"attention_mask": mask, "position_embeddings": rotary, "position_ids": position, "is_causal": False}
    for layer in body.layers[:-1]:
        hidden = layer(hidden, **shared)
    hidden = body.norm(_layer_at(body.layers[-1], hidden, mask, rotary, query))
    return hidden[row, slot.reshape(row.shape)]


def positions(attention_mask: Tensor) -> Tensor:
    """Rotary positions, int64 [B, S], from bool [B, S]: they count the real tokens."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_(min=0)


def entered(
    body: Any, input_ids: Tensor, position: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Rotary, Tensor | None]:
    """What the first layer of a decoder gets.

    Args:
        body: a decoder for which ``prunable`` holds.
        input_ids, position: int64 [B, W], tokens and their rotary positions.
        attention_mask: bool [B, K], the keys that count.

    Returns:
        Embeddings [B, W, D], rotary angles, and the mask bool [B, 1, 1, K] of the keys; None where all count.
    """
    hidden = body.embed_tokens(input_ids)
    mask = None if bool(attention_mask.all()) else attention_mask[:, None, None, :]
    return hidden, body.rotary_emb(hidden, position_ids=position), mask


def queries(row: Tensor, column: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Asked columns of each row, int64 [B, M], short rows filled with column 0; and where in M each place is, [n].

    Args:
        row, column: int64 [n], the places.
        batch: B.
    """
    count = torch.bincount(row, minlength=batch)
    order = row.argsort(stable=True)
    slot = torch.empty_like(row)
    slot[order] = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row[order]]
    width = int(count.max())
    return column.new_zeros(batch, max(width, 1)).index_put((row, slot), column), slot


def _layer_at(layer: Any, hidden: Tensor, mask: Tensor | None, rotary: Rotary, query: Tensor) -> Tensor:
    """Output of a decoder layer [B, M, D] at the columns ``query`` [B, M] of its input [B, S, D]."""
    normed = layer.input_layernorm(hidden)
    asked = query_heads(layer, normed, rotary, query)
    return attended(layer, hidden, asked, keys_values(layer, normed, rotary), mask, query)


def query_heads(layer: Any, normed: Tensor, rotary: Rotary, query: Tensor | None = None) -> Tensor:
    """Queries (rotated) [B, H, M, D / H] of a layer, from its normed input [B, S, D].

    Args:
        layer: of a decoder for which ``prunable`` holds.
        normed: [B, S, D].
        rotary: cosines and sines [B, S, D / H] (or [1, S, D / H]).
        query: int64 [B, M], the columns; None: all, M = S.
    """
    if query is not None:
        cosine, sine = (part.expand(len(normed), -1, -1) for part in rotary)
        rotary, normed = (_columns(cosine, query), _columns(sine, query)), _columns(normed, query)
    return _rotated(_heads(layer.self_attn, normed, "q"), *rotary)


def keys_values(layer: Any, normed: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values [B, G, S, D / H] of a layer, from its normed input [B, S, D]."""
    attention = layer.self_attn
    return _rotated(_heads(attention, normed, "k"), *rotary), _heads(attention, normed, "v")


def attended(
    layer: Any,
    hidden: Tensor,
    queries: Tensor,
    keys_and_values: tuple[Tensor, Tensor],
    mask: Tensor | None,
    query: Tensor | None = None,
) -> Tensor:
    """Output of a decoder layer [B, M, D], given its queries, keys and values.

    Args:
        layer: of a decoder for which ``prunable`` holds.
        hidden: its input [B, S, D].
        queries: [B, H, M, D / H].
        keys_and_values: [B, G, K, D / H] each.
        mask: bool [B, 1, 1, K], keys that count; None: all.
        query: int64 [B, M], the columns of ``hidden`` that the queries are of; None: all, M = S.
    """
    attention, (keys, values) = layer.self_attn, keys_and_values
    grouped = queries.shape[1] != keys.shape[1]
    mixed = scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=attention.scaling, enable_gqa=grouped
    )
    out = attention.o_proj(mixed.transpose(1, 2).flatten(-2))
    out = out + (hidden if query is None else _columns(hidden, query))
    return out + layer.mlp(layer.post_attention_layernorm(out))


def _columns(values: Tensor, query: Tensor) -> Tensor:
    """Columns int64 [B, M] of [B, S, D]: [B, M, D]."""
    return values.gather(1, query[..., None].expand(-1, -1, values.shape[-1]))


def _heads(attention: Any, hidden: Tensor, name: str) -> Tensor:
    """Queries, keys or values as [B, H, S, D / H]; Qwen3 norms queries and keys of each head."""
    projected = getattr(attention, f"{name}_proj")(hidden).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return (projected if norm is None else norm(projected)).transpose(1, 2)


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]
