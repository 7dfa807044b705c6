"""The last layer at the asked places only: its keys and values are needed everywhere, its queries and MLP are not.

The result is exact up to rounding, with and without gradients. This is for the decoders whose layers are known, where
they attend both ways. Shapes: B sequences, S positions, D hidden size, H heads, G heads of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dlmrl_kit.core.trajectory import on_device, on_host

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DECODERS = ("LlamaModel", "Qwen2Model", "Qwen3Model", "Qwen3MoeModel")
"""Classes of transformers with layers of this form: attention and MLP, each behind a norm, with rotary positions."""

Rotary: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines of the positions."""

Map: TypeAlias = Callable[[Tensor], Tensor]
"""A module from hidden states to hidden states."""

LayerAt: TypeAlias = Callable[[Tensor, Tensor | None, Rotary, Tensor], Tensor]
"""From the input of a layer, the mask of its keys, rotary angles and the asked columns to its output at these."""


class SelfAttention(Protocol):
    """The attention of a layer. Qwen3's has norms of the heads' queries and keys, too: ``q_norm``, ``k_norm``."""

    q_proj: Map
    k_proj: Map
    v_proj: Map
    o_proj: Map
    head_dim: int
    scaling: float

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Returns the submodules."""


class Layer(Protocol):
    """A layer of a decoder."""

    input_layernorm: Map
    self_attn: SelfAttention
    post_attention_layernorm: Map
    mlp: Map

    def __call__(self, hidden: Tensor, **context: object) -> Tensor:
        """Returns the output [B, S, D]."""


class Norm(Protocol):
    """The norm behind the last layer."""

    weight: Tensor

    def __call__(self, hidden: Tensor, /) -> Tensor:
        """Returns hidden states, normed."""


class RotaryEmbedding(Protocol):
    """Computes rotary angles."""

    def __call__(self, hidden: Tensor, position_ids: Tensor) -> Rotary:
        """Returns cosines and sines for positions int64 [B, S], in the precision of ``hidden``."""


class Decoder(Protocol):
    """What is used of a decoder of one of the classes ``DECODERS``."""

    embed_tokens: Map
    rotary_emb: RotaryEmbedding
    layers: Sequence[Layer]
    norm: Norm
    config: PretrainedConfig


def prunable(model: PreTrainedModel) -> bool:
    """Tells whether ``last_layer_at`` computes what the model does: a known class, attending both ways everywhere.

    Not of layers that ``fully_shard`` wrapped, whose parts have no weights by themselves: ``policies.sharding`` has a
    forward of its own for them. Nor of a model in training mode, which may drop out.
    """
    if model.training:
        return False
    body: Decoder = model.get_decoder()
    # By name, since importing all three classes takes long. A subclass may compute something else, and is left alone.
    if type(body).__name__ not in DECODERS or type(body.layers[-1]).__name__.startswith("FSDP"):
        return False
    settings = vars(body.config)  # not every one of these classes declares the following two
    full = set(settings.get("layer_types") or ["full_attention"]) == {"full_attention"}
    return full and settings.get("is_causal") is False and body.config._attn_implementation == "sdpa"


def last_layer_at(
    body: Decoder,
    input_ids: Tensor,
    attention_mask: Tensor,
    row: Tensor,
    column: Tensor,
    layer_at: LayerAt | None = None,
) -> Tensor:
    """Computes the final hidden states of a decoder at some places.

    Args:
        body: a decoder for which ``prunable`` holds.
        input_ids, attention_mask: int64 and bool [B, S], B at least 1; rotary positions count the real tokens.
        row, column: int64 [...], the places; they broadcast.
        layer_at: computes the last layer, given what ``layer_at_columns`` is given but for the layer; None: that does.

    Returns:
        [..., D].
    """
    given = torch.broadcast_tensors(on_host(row), on_host(column))
    query, index = queries(given[0].reshape(-1), given[1].reshape(-1), len(input_ids))
    query, index = (on_device(part, input_ids.device) for part in (query, index.reshape(given[0].shape)))
    position = positions(attention_mask)
    hidden, rotary, mask = entered(body, input_ids, position, attention_mask)
    shared = {"attention_mask": mask, "position_embeddings": rotary, "position_ids": position, "is_causal": False}
    for layer in body.layers[:-1]:
        hidden = layer(hidden, **shared)
    last = partial(layer_at_columns, body.layers[-1]) if layer_at is None else layer_at
    hidden = body.norm(last(hidden, mask, rotary, query))
    return hidden[row, index]


def positions(attention_mask: Tensor) -> Tensor:
    """Returns rotary positions, int64 [B, S], for a mask bool [B, S]: they count the real tokens of a row.

    So left padding shifts nothing. Padding itself gets position 0; nobody attends to it.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp_(min=0)


def entered(
    body: Decoder, input_ids: Tensor, position: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Rotary, Tensor | None]:
    """Computes what the first layer of a decoder gets.

    Args:
        body: a decoder for which ``prunable`` holds.
        input_ids, position: int64 [B, W], tokens and their rotary positions.
        attention_mask: bool [B, K], the keys that count.

    Returns:
        Embeddings [B, W, D], rotary angles, and the mask bool [B, 1, 1, K] of the keys; None where all count.
    """
    hidden = body.embed_tokens(input_ids)
    # Torch's fastest attention kernel takes no mask.
    mask = None if bool(on_host(attention_mask).all()) else attention_mask[:, None, None, :]
    return hidden, body.rotary_emb(hidden, position_ids=position), mask


def queries(row: Tensor, column: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Sorts the asked places by row.

    Args:
        row, column: int64 [n], the places, on the CPU.
        batch: B.

    Returns:
        The asked columns of each row, int64 [B, M], with column 0 behind those of a row that has fewer; and the index
        in M of each place, int64 [n].
    """
    count = torch.bincount(row, minlength=batch)
    order = row.argsort(stable=True)
    index = torch.empty_like(row)
    index[order] = torch.arange(len(row)) - (count.cumsum(0) - count)[row[order]]
    width = int(count.max())
    return column.new_zeros(batch, max(width, 1)).index_put((row, index), column), index


def layer_at_columns(layer: Layer, hidden: Tensor, mask: Tensor | None, rotary: Rotary, query: Tensor) -> Tensor:
    """Returns the output of a layer [B, M, D] at the columns ``query`` [B, M] of its input [B, S, D]."""
    normed = layer.input_layernorm(hidden)
    asked = query_heads(layer, normed, rotary, query)
    return attended(layer, hidden, asked, keys_values(layer, normed, rotary), mask, query)


def query_heads(layer: Layer, normed: Tensor, rotary: Rotary, query: Tensor | None = None) -> Tensor:
    """Computes the rotated queries [B, H, M, D / H] of a layer, from its normed input [B, S, D].

    Args:
        layer: of a decoder for which ``prunable`` holds.
        normed: [B, S, D].
        rotary: cosines and sines [B, S, D / H] (or [1, S, D / H]).
        query: int64 [B, M], the columns; None: all, M = S.
    """
    if query is not None:
        cosine, sine = (part.expand(len(normed), -1, -1) for part in rotary)
        rotary, normed = (_columns(cosine, query), _columns(sine, query)), _columns(normed, query)
    attention = layer.self_attn
    heads = _normed(attention, "q_norm", _heads(attention.q_proj(normed), attention.head_dim))
    return _rotated(heads.transpose(1, 2), *rotary)


def keys_values(layer: Layer, normed: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Computes the rotated keys and the values [B, G, S, D / H] of a layer, from its normed input [B, S, D]."""
    attention = layer.self_attn
    keys = _normed(attention, "k_norm", _heads(attention.k_proj(normed), attention.head_dim))
    values = _heads(attention.v_proj(normed), attention.head_dim)
    return _rotated(keys.transpose(1, 2), *rotary), values.transpose(1, 2)


def attended(
    layer: Layer,
    hidden: Tensor,
    queries: Tensor,
    keys_and_values: tuple[Tensor, Tensor],
    mask: Tensor | None,
    query: Tensor | None = None,
) -> Tensor:
    """Computes the output of a layer [B, M, D] from its queries, keys and values.

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
    # On a GPU grouped heads with a mask, or in float32, would fall to the kernel that keeps all scores in memory.
    if grouped and queries.device.type != "cpu" and (mask is not None or queries.dtype == torch.float32):
        keys, values = (part.repeat_interleave(queries.shape[1] // part.shape[1], dim=1) for part in (keys, values))
        grouped = False
    mixed = scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=attention.scaling, enable_gqa=grouped
    )
    out = attention.o_proj(mixed.transpose(1, 2).flatten(-2))
    out = out + (hidden if query is None else _columns(hidden, query))
    return out + layer.mlp(layer.post_attention_layernorm(out))


def _columns(values: Tensor, query: Tensor) -> Tensor:
    """Returns the columns int64 [B, M] of [B, S, D]: [B, M, D]."""
    return values.gather(1, query[..., None].expand(-1, -1, values.shape[-1]))


def _heads(projected: Tensor, size: int) -> Tensor:
    """[B, S, D] as heads [B, S, H, D / H]."""
    heads: Tensor = projected.unflatten(-1, (-1, size))
    return heads


def _normed(attention: SelfAttention, name: str, heads: Tensor) -> Tensor:
    """Queries or keys [B, S, H, D / H], normed for each head where the attention has a norm of that name."""
    norm = dict(attention.named_children()).get(name)
    if norm is None:
        return heads
    normed: Tensor = norm(heads)
    return normed


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Queries or keys [B, H, S, D / H], turned by their rotary angles."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]
