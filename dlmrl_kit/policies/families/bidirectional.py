"""Llama, Qwen2 and Qwen3 checkpoints as transformers writes them, run both ways with ``is_causal=False``."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.policies.checkpoint_files import load_model, load_tokenizer, without_remote_code
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

SUPPORTED = "Llama, Qwen2 and Qwen3 saved by transformers (model types llama, qwen2, qwen3, qwen3_moe)"

BIDIRECTIONAL = ("llama", "qwen2", "qwen3", "qwen3_moe")
"""Model types that transformers (>= 5.2) runs bidirectionally with ``is_causal=False``."""


def matches(config: dict[str, Any]) -> bool:
    """Whether transformers has the model's class and runs it both ways."""
    return config.get("model_type") in BIDIRECTIONAL and without_remote_code(config)


def load(source: str, config: dict[str, Any], options: LoadOptions) -> TransformersPolicy:
    """Loads the checkpoint; causal ones attend both ways from here on."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(source)
    settings.is_causal = False
    settings.use_cache = False
    model = load_model(AutoModelForCausalLM, source, options, config=settings)
    return TransformersPolicy(model, load_tokenizer(source, config), **options.policy_arguments())
