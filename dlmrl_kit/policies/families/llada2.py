"""LLaDA2.0 and LLaDA2.1 (arXiv 2512.15745, 2602.08676): block diffusion on a mixture of experts, Ling 2.0's blocks.

``Glm4MoeForCausalLM`` with ``SarvamMoEConfig`` computes the same, and transformers itself reads and writes the
published tensors under that configuration: it splits the fused queries, keys and values, and joins them again. What
differs is the attention mask (``BlockCausalPolicy``). ``config.json`` names neither the mask's id, the end of a text
nor the size of a block: they are the tokenizer's and the published generator's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.policies.checkpoint_files import ConfigJson, architectures, token_ids
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.families.llada import tokenizer_with_mask
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.routers import BlockCausalExpertsPolicy
from dlmrl_kit.policies.text_bounds import distinct
from dlmrl_kit.policies.weight_files import router_precisions, tensor_types, weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from dlmrl_kit.policies.checkpoint_files import ModelClass

BLOCK_SIZE = 32
"""Positions of a block in the published generator, for 2.0 and 2.1, mini and flash."""

_ATTENTION, _LAYER = "model.layers.*.attention", "model.layers.*"
NAMES = {
    "model.embed_tokens": "model.word_embeddings",
    "model.norm": "model.norm",
    "lm_head": "lm_head",
    **{f"model.layers.*.self_attn.{part}_proj": f"{_ATTENTION}.query_key_value" for part in "qkv"},
    "model.layers.*.self_attn.o_proj": f"{_ATTENTION}.dense",
    "model.layers.*.self_attn.q_norm": f"{_ATTENTION}.query_layernorm",
    "model.layers.*.self_attn.k_norm": f"{_ATTENTION}.key_layernorm",
    **{f"{_LAYER}.{name}": f"{_LAYER}.{name}" for name in ("input_layernorm", "post_attention_layernorm", "mlp.gate")},
    f"{_LAYER}.mlp.gate.e_score_correction_bias": f"{_LAYER}.mlp.gate.expert_bias",
    **{f"{_LAYER}.mlp.{part}_proj": f"{_LAYER}.mlp.{part}_proj" for part in ("gate", "up", "down")},
    **{
        f"{_LAYER}.mlp.shared_experts.{part}_proj": f"{_LAYER}.mlp.shared_experts.{part}_proj"
        for part in ("gate", "up", "down")
    },
}
"""Glm4Moe's names of modules, and of a buffer -> LLaDA2's. Single experts are no modules of Glm4Moe."""

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "num_experts_per_tok", "n_group", "topk_group", "rms_norm_eps"),
    *("routed_scaling_factor", "first_k_dense_replace", "max_position_embeddings", "tie_word_embeddings"),
    *("use_qk_norm", "initializer_range"),
)
"""Settings that Glm4Moe has under the same name."""

_RENAMED = {
    "num_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
    "use_qkv_bias": "attention_bias",
}

_READ = (*_SIZES, *_RENAMED, "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_dim", "use_bias")

_OPTIONAL = ("rope_scaling", "rotary_dim", "tie_word_embeddings", "initializer_range")

_ALIKE: dict[str, tuple[object, ...]] = {
    "use_bias": (False,),
    "hidden_act": ("silu",),
    "norm_head": (False, None),
    "norm_softmax": (False, None),
    "use_rmsnorm": (True, None),
    "using_split_qkv_in_self_attention": (False, None),
    "use_sliding_window": (False, None),
    "score_function": ("sigmoid", None),
    "router_dtype": ("fp32", "float32", None),
    "moe_router_enable_expert_bias": (True, None),
    "norm_topk_prob": (True, None),
}
"""Settings, with the values for which Glm4Moe computes what the published code does."""

_INERT = (
    *("architectures", "auto_map", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
    *("attention_dropout", "embedding_dropout", "output_dropout", "use_cache", "output_router_logits", "block_size"),
    *("sliding_window", "max_window_layers", "pad_token_id", "eos_token_id", "bos_token_id", "mask_token_id"),
    *("_attn_implementation", "attn_implementation"),
)
"""Settings that change no logit of an evaluation."""


class LLaDA2(Family):
    """LLaDA2's weights in ``Glm4MoeForCausalLM``, under a block-causal mask."""

    supported = "LLaDA2.0 and LLaDA2.1 (model type llada2_moe)"
    policy_class = BlockCausalExpertsPolicy

    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether ``config.json`` is that of a LLaDA2, or of one which the kit saved as transformers does."""
        kind = str(config.get("model_type"))
        saved = kind == "sarvam_moe" and config.get("block_size") is not None
        return saved or kind.startswith("llada2") or any(name.startswith("LLaDA2Moe") for name in architectures(config))

    def model_class(self) -> ModelClass:
        """``Glm4MoeForCausalLM``."""
        from transformers import Glm4MoeForCausalLM

        return Glm4MoeForCausalLM

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns the ``SarvamMoEConfig`` of a LLaDA2 configuration.

        Raises:
            UserError: transformers is too old, or a setting that is missing, unknown, or for which Glm4Moe would not
                compute what the published code does.
        """
        try:
            from transformers import SarvamMoEConfig
        except ImportError:
            from transformers import __version__

            raise UserError(
                f"LLaDA2 needs transformers 5.24 or later, and {__version__} is installed: pip install -U transformers"
            ) from None
        if config.get("model_type") == "sarvam_moe":
            settings = SarvamMoEConfig.from_dict(dict(config))
        else:
            _check_settings(config)
            rope = {"rope_type": "default", **(config.get("rope_scaling") or {})}
            rope["rope_type"] = rope.pop("type", rope["rope_type"])
            rope |= {"rope_theta": config["rope_theta"], "partial_rotary_factor": config["partial_rotary_factor"]}
            known: ConfigJson = {name: config[name] for name in _SIZES if name in config}
            known |= {ours: config[theirs] for theirs, ours in _RENAMED.items()}
            several = config["num_experts_per_tok"] > 1  # the published code scales one expert alone by its score
            # Padding is a text's end, and transformers would give its embedding no gradient.
            known |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": _end(config)}
            settings = SarvamMoEConfig(**known, norm_topk_prob=several, rope_parameters=rope)
            settings.mask_token_id = config.get("mask_token_id")
        settings.block_size = options.block_size or config.get("block_size") or BLOCK_SIZE
        settings.use_cache = False
        return settings

    def checkpoint_config(self, folder: str, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """As ``model_config``; refuses layers in the files that the configuration does not have.

        transformers leaves layers of some numbers out in silence, for other models of this class.
        """
        settings = self.model_config(config, options)
        for file in weight_files(Path(folder)):
            for name in tensor_types(file):
                parts = name.split(".")
                number = parts[2] if parts[:2] == ["model", "layers"] and len(parts) > 2 else ""
                if number.isdigit() and int(number) >= settings.num_hidden_layers:
                    raise UserError(f"{file}: tensors are left over, among them {name}")
        return settings

    def layout(self, folder: str, config: ConfigJson) -> Layout | None:
        """Returns LLaDA2's names, the precision of its routers and the files; None for one saved by transformers."""
        if config.get("model_type") == "sarvam_moe":
            return None
        found = router_precisions(folder).items()
        names = {name.replace("expert_bias", "e_score_correction_bias"): dtype for name, dtype in found}
        return Layout(read_files(folder), NAMES, converted=True, precisions=names)

    def tokenizer(self, folder: str, config: ConfigJson) -> PreTrainedTokenizerBase:
        """Loads the tokenizer; its mask is the one of the vocabulary, where nothing else names it."""
        return tokenizer_with_mask(folder, config)

    def ends(self, folder: str, config: ConfigJson, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Returns the ids that end a text: the tokenizer's, and what pads, which is the same in the published ones."""
        return distinct([*super().ends(folder, config, tokenizer), *token_ids(config, "pad")])


def _end(config: ConfigJson) -> int | None:
    """Returns the id that ends a text by ``config.json``; the published ones give that of padding alone."""
    return next(iter([*token_ids(config, "eos"), *token_ids(config, "pad")]), None)


def _check_settings(config: ConfigJson) -> None:
    """Refuses what is not known to be computed as published.

    Raises:
        UserError: names the setting.
    """
    if missing := [name for name in _READ if name not in config and name not in _OPTIONAL]:
        raise UserError(f"config.json of a LLaDA2 without {', '.join(missing)}")
    for name, values in _ALIKE.items():
        if name in config and config[name] not in values:
            raise UserError(f"a LLaDA2 with {name} = {clipped(repr(config[name]))}: its blocks are not Glm4Moe's")
    known = {*_READ, *_ALIKE, *_INERT}
    for name, value in config.items():
        # A later LLaDA2 may route its tokens in another way, and would load without a word.
        if name not in known and value not in (None, False):
            raise UserError(
                f"a LLaDA2 with {name} = {clipped(repr(value))}, which the kit does not know: it may compute something "
                "else than LLaDA2.0 and 2.1 do"
            )
    if not config["num_shared_experts"]:
        raise UserError("a LLaDA2 without shared experts (num_shared_experts): Glm4Moe has no such blocks")
    turned = int(config["head_dim"] * config["partial_rotary_factor"])
    if config.get("rotary_dim", turned) != turned:
        raise UserError(
            f"a LLaDA2 with rotary_dim = {config['rotary_dim']}, but partial_rotary_factor turns {turned} of head_dim"
        )
