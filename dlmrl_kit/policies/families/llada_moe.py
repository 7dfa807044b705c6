"""LLaDA-MoE (arXiv 2509.24389): the blocks of Qwen3-MoE, under the same names, attending both ways.

Like them, and unlike OLMoE's, its attention normalises queries and keys per head; the router is a softmax whose largest
entries weight the experts without being normalised again.
"""

from __future__ import annotations

from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import load_model, load_tokenizer
from dlmrl_kit.policies.families.llada import name_mask
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

SUPPORTED = "LLaDA-MoE (LLaDAMoEModelLM)"

_CLASSES = ("LLaDAMoEModelLM", "LLaDAMoEModel")

_QWEN3_ALIKE: dict[str, tuple[tuple[Any, ...], str]] = {
    "qk_layernorm": ((True,), "attention without norms on queries and keys"),
    "shared_expert_intermediate_size": ((None, 0), "shared experts"),
    "moe_router_enable_expert_bias": ((False, None), "a bias of the experts in the router"),
    "moe_router_score_function": (("softmax", None), "a router that is no softmax"),
    "routed_scaling_factor": ((1, 1.0, None), "scaled experts"),
    "partial_rotary_factor": ((1, 1.0, None), "rotary positions on a part of each head"),
    "attention_bias": ((False, None), "attention with biases"),
    "clip_qkv": ((None,), "clipped queries, keys and values"),
    "hidden_act": (("silu",), "an activation other than silu"),
}
"""Settings, with the values for which the blocks are Qwen3-MoE's, and what other values need."""


def matches(config: dict[str, Any]) -> bool:
    """Whether ``config.json`` is that of a LLaDA with experts, of the first or a later generation."""
    classes = config.get("architectures") or []
    return any(name in _CLASSES or name.startswith("LLaDA2Moe") for name in classes) or str(
        config.get("model_type")
    ).startswith("llada2")


def load(source: str, config: dict[str, Any], options: LoadOptions) -> TransformersPolicy:
    """Loads the weights into ``Qwen3MoeForCausalLM``.

    Raises:
        UserError: LLaDA2, or a configuration with blocks that transformers' Qwen3-MoE does not have.
    """
    from transformers import Qwen3MoeForCausalLM

    layout = Layout(read_files(source))
    model = load_model(Qwen3MoeForCausalLM, source, options, config=qwen3_moe_config(config), strict=True)
    tokenizer = load_tokenizer(source, config)
    name_mask(tokenizer, config)
    return TransformersPolicy(model, tokenizer, layout=layout, **options.policy_arguments())


def qwen3_moe_config(config: dict[str, Any]) -> Any:
    """The ``Qwen3MoeConfig`` of a LLaDA-MoE configuration.

    Raises:
        UserError: a setting that Qwen3-MoE has no block for.
    """
    from transformers import Qwen3MoeConfig

    classes = config.get("architectures") or []
    if not any(name in _CLASSES for name in classes):
        raise UserError(
            "LLaDA2 (Ling 2.0 blocks) is not supported: transformers has no model with its sigmoid router with groups "
            "and expert biases beside shared experts and partly rotary attention, run block by block"
        )
    for name, (values, needed) in _QWEN3_ALIKE.items():
        if name in config and config[name] not in values:
            raise UserError(f"a LLaDA-MoE with {name} = {config[name]!r} needs {needed}, which Qwen3-MoE does not have")
    layers = int(config["num_hidden_layers"])
    frequency = config.get("moe_layer_freq") or [1] * layers
    return Qwen3MoeConfig(  # type: ignore[call-arg]  # transformers accepts attributes its stubs do not list
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config.get("dense_intermediate_size") or config["expert_intermediate_size"],
        moe_intermediate_size=config["expert_intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        num_experts=config["num_experts"],
        num_experts_per_tok=config["num_experts_per_tok"],
        norm_topk_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[layer for layer, sparse in enumerate(frequency) if not sparse],
        max_position_embeddings=config.get("max_position_embeddings", 4096),
        rms_norm_eps=config.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)},
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        initializer_range=config.get("initializer_range", 0.02),
        bos_token_id=None,
        pad_token_id=None,  # it is the end of text, and transformers would give its embedding no gradient
        eos_token_id=config.get("eos_token_id"),
        mask_token_id=config.get("mask_token_id"),
        is_causal=False,
        use_cache=False,
    )
