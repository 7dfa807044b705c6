"""Random decoders of several transformers classes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES = {
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "is_causal": False,
    "attn_implementation": "sdpa",
}
EXPERTS = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 4}
CLASSES = [
    (LlamaConfig, LlamaForCausalLM),
    (Qwen2Config, Qwen2ForCausalLM),
    (Qwen3Config, Qwen3ForCausalLM),
    (Qwen3MoeConfig, Qwen3MoeForCausalLM),
]


def model_of(config: Any, cls: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    experts = cls is Qwen3MoeForCausalLM
    model = cls(config(**{**SIZES, **(EXPERTS if experts else {}), **changes}))
    if experts:
        model.set_experts_implementation("eager")  # grouped products have no double precision
    return model.double().eval()
