"""LLaDA-MoE (arXiv 2509.24389): the blocks of Qwen3-MoE, under the same names, attending both ways.

Like them, and unlike OLMoE's, its attention normalises queries and keys per head; the router is a softmax whose largest
entries weight the experts without being normalised again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import ConfigJson, architectures
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.families.bidirectional import both_ways
from dlmrl_kit.policies.families.llada import shared_settings, tokenizer_with_mask
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.routers import ExpertsPolicy
from dlmrl_kit.policies.weight_files import router_precisions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from dlmrl_kit.policies.checkpoint_files import ModelClass

_CLASSES = ("LLaDAMoEModelLM", "LLaDAMoEModel")

_QWEN3_ALIKE: dict[str, tuple[tuple[object, ...], str]] = {
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


class LLaDAMoE(Family):
    """LLaDAs with experts, of the first generation, in ``Qwen3MoeForCausalLM``."""

    supported = "LLaDA-MoE (LLaDAMoEModelLM)"
    policy_class = ExpertsPolicy

    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether ``config.json`` is that of a LLaDA with experts, of the first generation."""
        return any(name in _CLASSES for name in architectures(config))

    def model_class(self) -> ModelClass:
        """``Qwen3MoeForCausalLM``."""
        from transformers import Qwen3MoeForCausalLM

        return Qwen3MoeForCausalLM

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns the ``Qwen3MoeConfig`` of a LLaDA-MoE configuration.

        Raises:
            UserError: a setting that Qwen3-MoE has no block for.
        """
        from transformers import Qwen3MoeConfig

        _check_blocks(config)
        layers = int(config["num_hidden_layers"])
        frequency = config.get("moe_layer_freq") or [1] * layers
        settings = Qwen3MoeConfig(  # type: ignore[call-arg]  # head_dim, which it takes without listing it
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
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            initializer_range=config.get("initializer_range", 0.02),
            **shared_settings(config),
        )
        settings.mask_token_id = config.get("mask_token_id")
        return both_ways(settings)

    def layout(self, folder: str, config: ConfigJson) -> Layout | None:
        """Returns the files of the checkpoint, and the precision of the routers in them."""
        return Layout(read_files(folder), precisions=router_precisions(folder))

    def tokenizer(self, folder: str, config: ConfigJson) -> PreTrainedTokenizerBase:
        """Loads the tokenizer; its mask is the one of the vocabulary, where ``config.json`` gives none."""
        return tokenizer_with_mask(folder, config)


def _check_blocks(config: ConfigJson) -> None:
    for name, (values, needed) in _QWEN3_ALIKE.items():
        if name in config and config[name] not in values:
            raise UserError(f"a LLaDA-MoE with {name} = {config[name]!r} needs {needed}, which Qwen3-MoE does not have")
