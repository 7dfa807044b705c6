"""Tiny policies: a random Llama with a tokenizer, a table of logits, and a record of a policy's forwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dlmrl_kit.core.policy import Policy
from dlmrl_kit.policies.characters import character_tokenizer
from dlmrl_kit.policies.transformers_policy import TransformersPolicy


def tiny_policy(
    seed: int = 0, hidden: int = 32, layers: int = 2, characters: str = "abcdefgh", **config: Any
) -> TransformersPolicy:
    """A random bidirectional Llama with a real character tokenizer; logits far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = character_tokenizer(characters)
    settings = {"initializer_range": 0.35, **config}
    return TransformersPolicy(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer) + 2,  # two padding rows
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                is_causal=False,
                use_cache=False,
                pad_token_id=0,
                mask_token_id=1,
                eos_token_id=2,
                bos_token_id=None,
                **settings,
            )
        ),
        tokenizer,
    )


class TabularPolicy(Policy):
    """Logits from a table indexed by the whole state, float64: any function of the state is one of these.

    Tokens 0 .. V-1, mask V; no end of text. ``forbidden_ids`` holds the mask.
    """

    def __init__(self, vocab: int, length: int, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = ((vocab + 1) ** length, length, vocab + 1)
        self.table = nn.Parameter(scale * torch.randn(shape, generator=generator, dtype=torch.float64))
        self.vocab, self.length = vocab, length
        self.mask_id, self.pad_id = vocab, vocab
        self.eos_ids = ()
        self.forbidden_ids = (vocab,)
        self.vocab_size = vocab + 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        state = input_ids[:, -self.length :]
        index = (state * (self.vocab + 1) ** torch.arange(self.length)).sum(-1)
        return self.table[index][positions[:, -self.length :]]


@contextlib.contextmanager
def recorded_calls(policy: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """The arguments (input_ids, attention_mask, positions) of every forward of ``policy`` within the context."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    features = policy.features

    def recorded(*args: Tensor) -> Tensor:
        calls.append(args)
        return features(*args)

    policy.features = recorded
    try:
        yield calls
    finally:
        del policy.features
