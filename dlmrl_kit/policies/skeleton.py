"""Checkpoints without their weights: the model that a ``config.json`` describes, at its size or scaled down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.characters import character_tokenizer
from dlmrl_kit.policies.load import family_of
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?+-*/=()[]{}<>'\"_#$%&@^|~`\\"

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant: ' }}{% endif %}"
)

SMALL: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim"), 32),
    **dict.fromkeys(("intermediate_size", "mlp_hidden_size", "hidden_dim", "dense_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "expert_intermediate_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "max_window_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim"), 8),
    "position_embedding_size": 32,
    "canvas_length": 16,
}
"""What sizes become in a scaled-down configuration, by their names in ``config.json`` of any family."""

LARGEST = 5_000_000
"""Parameters that a scaled-down model may have."""


def skeleton(config: dict[str, Any], options: LoadOptions) -> Any:
    """The transformers model of a ``config.json`` with random weights, on torch's default device (``meta`` has none).

    Args:
        config: as the checkpoint's.
        options: for ``block_size``.

    Raises:
        UserError: no family of the kit, or a configuration that it refuses.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        LlamaForCausalLM,
        Qwen2ForCausalLM,
        Qwen3ForCausalLM,
        Qwen3MoeForCausalLM,
    )

    family = family_of(config)
    builders: dict[str, Callable[[], Any]] = {
        "llada": lambda: LlamaForCausalLM(family.llama_config(config)),
        "llada_moe": lambda: Qwen3MoeForCausalLM(family.qwen3_moe_config(config)),
        "dream": lambda: Qwen2ForCausalLM(family.qwen2_config(config)),
        "sdar": lambda: Qwen3ForCausalLM(family.qwen3_config(config, options.block_size)),
        "diffusion_gemma": lambda: DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig.from_dict(config)),
        "bidirectional": lambda: AutoModelForCausalLM.from_config(_both_ways(AutoConfig.for_model(**config))),
        "masked_lm": lambda: AutoModelForMaskedLM.from_config(AutoConfig.for_model(**config)),
    }
    name = _name(family)
    if name not in builders:
        raise UserError(f"the family {name} cannot be built without its weights")
    return builders[name]()


def wrapped(model: Any, config: dict[str, Any], options: LoadOptions) -> TransformersPolicy:
    """The policy of a ``skeleton``, with a tokenizer of single characters in place of the checkpoint's."""
    from dlmrl_kit.policies.block_causal import BlockCausalPolicy
    from dlmrl_kit.policies.families.diffusion_gemma import DiffusionGemmaPolicy
    from dlmrl_kit.policies.families.masked_lm import MaskedLMPolicy

    kinds: dict[str, type[TransformersPolicy]] = {
        "sdar": BlockCausalPolicy,
        "diffusion_gemma": DiffusionGemmaPolicy,
        "masked_lm": MaskedLMPolicy,
    }
    tokenizer = stand_in()
    model.config.mask_token_id = tokenizer.mask_token_id
    return kinds.get(_name(family_of(config)), TransformersPolicy)(
        model, tokenizer, chat_template=options.chat_template
    )


def stand_in() -> Any:
    """A tokenizer of single characters with a chat template."""
    tokenizer = character_tokenizer(CHARACTERS)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def scaled_down(config: dict[str, Any]) -> dict[str, Any]:
    """A ``config.json`` of the same architecture: two narrow layers and the vocabulary of ``stand_in``.

    Heads keep their ratio to key-value heads; kinds of layers, blocks, windows and soft caps stay as they are.
    """
    tokenizer = stand_in()
    ids = {"mask": tokenizer.mask_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id, "bos": None}
    small: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and name in ("text_config", "vision_config"):
            small[name] = scaled_down(value)
        elif name == "per_layer_config":
            ends = [str(0), str(config["num_hidden_layers"] - 1)]
            small[name] = {i: scaled_down(value[end]) for i, end in enumerate(ends) if end in value}
        elif name in SMALL and value is not None:
            small[name] = SMALL[name]
        elif name in ("vocab_size", "embedding_size"):
            small[name] = len(tokenizer)
        elif name.endswith("_token_id") and name.partition("_")[0] in ids:
            small[name] = ids[name.partition("_")[0]]
        elif name in ("layer_types", "moe_layer_freq") and value:
            small[name] = [value[0], value[-1]]
        else:
            small[name] = value
    for heads, groups in (("num_attention_heads", "num_key_value_heads"), ("n_heads", "n_kv_heads")):
        for name in (groups, "num_global_key_value_heads"):
            if config.get(name):  # an override of single layers does not say of how many heads
                small[name] = max(1, SMALL[heads] * config[name] // config[heads]) if heads in config else 1
    return small


def small_policy(config: dict[str, Any], options: LoadOptions) -> TransformersPolicy:
    """A policy of ``scaled_down(config)`` with random weights.

    Raises:
        UserError: as ``skeleton``, or sizes under names that the kit does not know.
    """
    small = scaled_down(config)
    model = skeleton(small, options)
    count = sum(p.numel() for p in model.parameters())
    if count > LARGEST:
        raise UserError(f"the configuration cannot be scaled down: {count:,} parameters are left")
    return wrapped(model, small, options)


def _both_ways(settings: Any) -> Any:
    settings.is_causal = False
    settings.use_cache = False
    return settings


def _name(family: Any) -> str:
    return str(family.__name__).rpartition(".")[2]
