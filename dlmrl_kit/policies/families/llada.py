"""LLaDA 8B Base, Instruct and 1.5 (arXiv 2502.09992, 2505.19223): a Llama that attends both ways, under other names.

The published blocks (RMS norms, rotary positions, SwiGLU, no biases) are those of ``LlamaForCausalLM``: tensors are
renamed on loading and named back on saving; nothing else changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import ConfigJson, architectures, load_tokenizer
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.families.bidirectional import both_ways
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.options import LoadOptions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from dlmrl_kit.policies.checkpoint_files import ModelClass

NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "model.layers.*.input_layernorm": "model.transformer.blocks.*.attn_norm",
    "model.layers.*.self_attn.q_proj": "model.transformer.blocks.*.q_proj",
    "model.layers.*.self_attn.k_proj": "model.transformer.blocks.*.k_proj",
    "model.layers.*.self_attn.v_proj": "model.transformer.blocks.*.v_proj",
    "model.layers.*.self_attn.o_proj": "model.transformer.blocks.*.attn_out",
    "model.layers.*.post_attention_layernorm": "model.transformer.blocks.*.ff_norm",
    "model.layers.*.mlp.gate_proj": "model.transformer.blocks.*.ff_proj",
    "model.layers.*.mlp.up_proj": "model.transformer.blocks.*.up_proj",
    "model.layers.*.mlp.down_proj": "model.transformer.blocks.*.ff_out",
}
"""Llama's names of modules -> LLaDA's."""

MASK_TOKENS = ("<|mdm_mask|>", "<|mask|>")
"""The mask in LLaDA's vocabularies, where ``config.json`` does not give its id."""

_LLAMA_ALIKE: dict[str, tuple[object, ...]] = {
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "alibi": (False, None),
    "attention_layer_norm": (False, None),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1, None),
    "clip_qkv": (None,),
    "include_bias": (False, None),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False, None),
    "layer_norm_with_affine": (True,),
    "scale_logits": (False, None),
}
"""Settings of a LLaDA configuration with the values for which its blocks are Llama's."""


class LLaDA(Family):
    """Dense LLaDAs, in ``LlamaForCausalLM``."""

    supported = "LLaDA 8B and 1.5 (model type llada), MMaDA's text (model type mmada)"

    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether ``config.json`` is that of a dense LLaDA, or of an MMaDA, whose network is LLaDA's."""
        named = config.get("model_type") in ("llada", "mmada") and "d_model" in config
        return named or not {"LLaDAModelLM", "MMadaModelLM"}.isdisjoint(architectures(config))

    def model_class(self) -> ModelClass:
        """``LlamaForCausalLM``."""
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns the ``LlamaConfig`` of a LLaDA configuration.

        Raises:
            UserError: a setting that is missing, or for which the blocks are not Llama's.
        """
        from transformers import LlamaConfig

        for name, values in _LLAMA_ALIKE.items():
            if name in config and config[name] not in values:
                raise UserError(
                    f"a LLaDA with {name} = {config[name]!r}: its blocks are not Llama's, the only ones known"
                )
        sizes = {name: config.get(name) for name in ("d_model", "n_heads", "n_layers", "vocab_size")}
        if missing := [name for name, value in sizes.items() if value is None]:
            raise UserError(f"config.json of a LLaDA without {', '.join(missing)}")
        kv_heads = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else config["n_heads"])
        settings = LlamaConfig(
            vocab_size=config.get("embedding_size") or config["vocab_size"],
            hidden_size=config["d_model"],
            intermediate_size=config.get("mlp_hidden_size") or config.get("mlp_ratio", 4) * config["d_model"],
            num_hidden_layers=config["n_layers"],
            num_attention_heads=config["n_heads"],
            num_key_value_heads=kv_heads,
            max_position_embeddings=config.get("max_sequence_length", 4096),
            tie_word_embeddings=bool(config.get("weight_tying", False)),
            initializer_range=config.get("init_std", 0.02),
            **shared_settings(config),
        )
        settings.mask_token_id = config.get("mask_token_id")
        return both_ways(settings)

    def layout(self, folder: str, config: ConfigJson) -> Layout | None:
        """Returns LLaDA's names and the files of the checkpoint."""
        return Layout(read_files(folder), NAMES)

    def tokenizer(self, folder: str, config: ConfigJson) -> PreTrainedTokenizerBase:
        """Loads the tokenizer; its mask is the one of the vocabulary, where ``config.json`` gives none."""
        return tokenizer_with_mask(folder, config)


class SharedSettings(TypedDict):
    """Settings that a LLaDA's configuration calls as transformers does, and that all LLaDAs have in common."""

    rms_norm_eps: float
    rope_parameters: dict[str, object]
    bos_token_id: None
    pad_token_id: None
    eos_token_id: int | None


def shared_settings(config: ConfigJson) -> SharedSettings:
    """Returns the settings of transformers' configuration that are the same for all LLaDAs."""
    return {
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)},
        "bos_token_id": None,
        "pad_token_id": None,  # it is the end of text, and transformers would give its embedding no gradient
        "eos_token_id": config.get("eos_token_id"),
    }


def tokenizer_with_mask(folder: str, config: ConfigJson) -> PreTrainedTokenizerBase:
    """Loads a LLaDA's tokenizer, and tells it its mask, where only the vocabulary has it."""
    tokenizer = load_tokenizer(folder, config)
    if config.get("mask_token_id") is None and tokenizer.mask_token is None:
        vocabulary = tokenizer.get_vocab()
        tokenizer.mask_token = next((token for token in MASK_TOKENS if token in vocabulary), None)
    return tokenizer
