"""Approximate caches: the cached policy is a function of the state, equal to one computed layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from dlmrl_kit.caches.base import Window
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.policies.key_cache import KeyCache

MASK, PROMPT, LENGTH, BLOCK = 12, 3, 7, 3
SIZES = {
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "is_causal": False,
    "attn_implementation": "sdpa",
}
CLASSES = [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM), (Qwen3Config, Qwen3ForCausalLM)]


def model_of(config: Any, cls: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return cls(config(**{**SIZES, **changes})).double().eval()


BODIES = [model_of(*pair).get_decoder() for pair in CLASSES]


def layer_by_layer(body: Any, ids: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Final hidden states [B, S, D] of the cached policy, with the model's own layers on whole sequences.

    In every layer, what is outside of the window is the anchor's input to that layer.
    """
    span = window.of(ids)
    column = torch.arange(ids.shape[1])
    inside = ((column >= span.start[:, None]) & (column < span.end[:, None]))[..., None]
    position = (mask.long().cumsum(-1) - 1).clamp(min=0)
    then, now = body.embed_tokens(span.anchor), body.embed_tokens(ids)
    shared = {
        "attention_mask": mask[:, None, None, :],
        "position_embeddings": body.rotary_emb(then, position_ids=position),
        "position_ids": position,
        "is_causal": False,
    }
    for layer in body.layers:
        then, now = layer(then, **shared), layer(torch.where(inside, now, then), **shared)
    return body.norm(torch.where(inside, now, then))


def states(generator: torch.Generator, rows: int) -> tuple[Tensor, Tensor]:
    """States in the middle of decoding block by block, and their masks: some rows are left-padded."""
    ids = torch.randint(MASK, (rows, PROMPT + LENGTH), generator=generator)
    mask = torch.ones(rows, PROMPT + LENGTH, dtype=torch.bool)
    for row in range(rows):
        mask[row, : int(torch.randint(PROMPT, (), generator=generator))] = False
        begin = PROMPT + BLOCK * int(torch.randint(-(-LENGTH // BLOCK), (), generator=generator))
        end = min(begin + BLOCK, PROMPT + LENGTH)
        left = int(torch.randint(1, end - begin + 1, (), generator=generator))
        ids[row, begin + torch.randperm(end - begin, generator=generator)[:left]] = MASK
        ids[row, end:] = MASK
    return ids, mask


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(BODIES),
    st.sampled_from([DualCache(), PrefixCache()]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_cached_states_are_those_computed_layer_by_layer(
    body: Any, cache: Any, shift: bool, everywhere: bool, seed: int
) -> None:
    """In any order of calls: rows come, go, are repeated and change places, and ask for different positions."""
    generator = torch.Generator().manual_seed(seed)
    window = cache.window(MASK, LENGTH, BLOCK, shift)
    found = KeyCache(window)
    ids, mask = states(generator, 5)
    for _ in range(4):
        rows = torch.randint(5, (int(torch.randint(1, 6, (), generator=generator)),), generator=generator)
        asked = (ids[rows] == MASK) if everywhere else _in_block(ids[rows], window)
        if shift:
            asked = asked.roll(-1, dims=1)
        row, column = asked.nonzero(as_tuple=True)
        with torch.no_grad():
            own = found.hidden_at(body, ids[rows], mask[rows], row, column)
            expected = layer_by_layer(body, ids[rows], mask[rows], window)[asked]
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9)
        ids = _committed(ids, generator)
        everywhere = everywhere or bool(torch.rand((), generator=generator) < 0.2)


def _in_block(ids: Tensor, window: Window) -> Tensor:
    span = window.of(ids)
    begin = PROMPT + ((ids[:, PROMPT:] == MASK).long().argmax(-1) // BLOCK) * BLOCK
    column = torch.arange(ids.shape[1])
    return (ids == MASK) & (column >= begin[:, None]) & (column < begin[:, None] + BLOCK) & (span.anchor == MASK)


def _committed(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Each row commits one position of its block, but for rows with a single mask."""
    ids = ids.clone()
    for row in range(len(ids)):
        masks = (ids[row] == MASK).nonzero().squeeze(-1)
        if len(masks) > 1:
            block = (masks[0] - PROMPT) // BLOCK
            own = masks[(masks - PROMPT) // BLOCK == block]
            ids[row, own[int(torch.randint(len(own), (), generator=generator))]] = 1
    return ids
