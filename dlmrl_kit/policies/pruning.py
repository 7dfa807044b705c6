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
    position = (attention_mask.long().cumsum(-1) - 1).clamp_(min=0)
    hidden = body.embed_tokens(input_ids)
    rotary = body.rotary_emb(hidden, position_ids=position)
    mask = None if bool(attention_mask.all()) else attention_mask[:, None, None, :]
    shared = {"attention_mask": mask, "position_embeddings": rotary, "position_ids": position, "is_causal": False}
    for layer in body.layers[:-1]:
        hidden = layer(hidden, **shared)
    hidden = body.norm(_layer_at(body.layers[-1], hidden, mask, rotary, query))
    return hidden[row, slot.reshape(row.shape)]


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
    keys, values = keys_values(layer, normed, rotary)
    return attended(layer, hidden, normed, rotary, query, (keys, values), mask)


def keys_values(layer: Any, normed: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values [B, G, S, D / H] of a layer, from its normed input [B, S, D]."""
    attention = layer.self_attn
    return _rotated(_heads(attention, normed, "k"), *rotary), _heads(attention, normed, "v")


def attended(
    layer: Any,
    hidden: Tensor,
    normed: Tensor,
    rotary: Rotary,
    query: Tensor | None,
    keys_and_values: tuple[Tensor, Tensor],
    mask: Tensor | None,
) -> Tensor:
    """Output of a decoder layer [B, M, D] at some of the columns of its input, given all keys and values.

    Args:
        layer: of a decoder for which ``prunable`` holds.
        hidden, normed: its input [B, S, D], as it is and normed.
        rotary: cosines and sines [B, S, D / H] (or [1, S, D / H]) of these columns.
        query: int64 [B, M], the columns; None: all, M = S.
        keys_and_values: [B, G, K, D / H] each.
        mask: bool [B, 1, 1, K], keys that count; None: all.
    """
    attention = layer.self_attn
    if query is not None:
        index = query[..., None]
        cosine, sine = (part.expand(len(hidden), -1, -1) for part in rotary)
        rotary = (_columns(cosine, index), _columns(sine, index))
        hidden, normed = _columns(hidden, index), _columns(normed, index)
    q = _rotated(_heads(attention, normed, "q"), *rotary)
    k, v = keys_and_values
    grouped = q.shape[1] != k.shape[1]
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scaling, enable_gqa=grouped)
    out = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(-2))
    return out + layer.mlp(layer.post_attention_layernorm(out))


def _columns(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index.expand(-1, -1, values.shape[-1]))


def _heads(attention: Any, hidden: Tensor, name: str) -> Tensor:
    """Queries, keys or values as [B, H, S, D / H]; Qwen3 norms queries and keys of each head."""
    projected = getattr(attention, f"{name}_proj")(hidden).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return (projected if norm is None else norm(projected)).transpose(1, 2)


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]
