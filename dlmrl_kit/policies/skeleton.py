"""Checkpoints without their weights: the model that a ``config.json`` describes, at its size or scaled down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.characters import character_tokenizer
from dlmrl_kit.policies.checkpoint_files import ConfigJson
from dlmrl_kit.policies.loading import family_of
from dlmrl_kit.policies.model_files import foreign
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant: ' }}{% endif %}"
)

SMALL: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim"), 32),
    **dict.fromkeys(("intermediate_size", "mlp_hidden_size", "hidden_dim", "dense_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "expert_intermediate_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "max_window_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim"), 8),
    "position_embedding_size": 32,
    "canvas_length": 16,
}
"""What sizes become in a scaled-down configuration, by their names in ``config.json`` of any family."""

AT_MOST: dict[str, int] = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
"""Sizes that become no larger than this."""

LONGER = ("max_position_embeddings", "max_sequence_length")
"""Sizes that grow by ``BYTES_PER_TOKEN``, as prompts do when each token is a byte."""

BYTES_PER_TOKEN = 4

LARGEST = 5_000_000
"""Parameters that a scaled-down model may have."""


def skeleton(config: ConfigJson, options: LoadOptions) -> PreTrainedModel:
    """Builds the model of a ``config.json`` with random weights, on torch's default device (``meta`` has no weights).

    Raises:
        UserError: no family of the kit, or a configuration that it refuses.
    """
    with foreign("config.json describes no model that can be built"):
        return family_of(config).empty_model(config, options)


def wrapped(model: PreTrainedModel, config: ConfigJson, options: LoadOptions) -> TransformersPolicy:
    """Returns the policy of a ``skeleton``, with a tokenizer of single bytes in place of the checkpoint's."""
    tokenizer = stand_in()
    model.config.mask_token_id = tokenizer.mask_token_id
    return family_of(config).policy_class(model, tokenizer, chat_template=options.chat_template)


def stand_in() -> PreTrainedTokenizerFast:
    """Returns a tokenizer of single bytes, which can read every text, with a chat template."""
    from tokenizers import Regex, decoders, pre_tokenizers

    tokenizer = character_tokenizer("".join(sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.chat_template = TEMPLATE
    bytes_first = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    one_by_one = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([bytes_first, one_by_one])
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def scaled_down(config: ConfigJson) -> ConfigJson:
    """Returns a ``config.json`` of the same architecture with two narrow layers and the vocabulary of ``stand_in``.

    Heads keep their ratio to key-value heads; kinds of layers, blocks, windows and soft caps stay as they are.
    """
    tokenizer = stand_in()
    ids = {"mask": tokenizer.mask_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id, "bos": None}
    small: ConfigJson = {}
    for name, value in config.items():
        if isinstance(value, dict) and name in ("text_config", "vision_config"):
            small[name] = scaled_down(value)
        elif name == "per_layer_config":
            ends = [str(0), str(config["num_hidden_layers"] - 1)]  # of the first and of the last layer
            small[name] = {i: scaled_down(value[end]) for i, end in enumerate(ends) if end in value}
        elif name in SMALL and value is not None:
            small[name] = SMALL[name]
        elif name in AT_MOST and isinstance(value, int):
            small[name] = min(value, AT_MOST[name])
        elif name == "rotary_dim" and value is not None:
            small[name] = SMALL["head_dim"] * value // config["head_dim"]
        elif name in LONGER and isinstance(value, int):
            small[name] = value * BYTES_PER_TOKEN
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


def small_policy(config: ConfigJson, options: LoadOptions) -> TransformersPolicy:
    """Returns a policy of ``scaled_down(config)`` with random weights.

    Raises:
        UserError: as ``skeleton``, or sizes under names that the kit does not know.
    """
    with foreign("config.json describes no model that can be scaled down"):
        small = scaled_down(config)
    model = skeleton(small, options)
    count = sum(p.numel() for p in model.parameters())
    if count > LARGEST:
        raise UserError(f"the configuration cannot be scaled down: {count:,} parameters are left")
    return wrapped(model, small, options)
