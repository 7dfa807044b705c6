"""Random decoders of several transformers classes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

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
CLASSES = [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM), (Qwen3Config, Qwen3ForCausalLM)]


def model_of(config: Any, cls: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return cls(config(**{**SIZES, **changes})).double().eval()
