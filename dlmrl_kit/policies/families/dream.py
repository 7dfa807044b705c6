"""Dream 7B (arXiv 2508.15487), Dream-Coder, DiffuCoder (arXiv 2506.20639): Qwen2 both ways, logits shifted by one."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import load_model, load_tokenizer
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

SUPPORTED = "Dream 7B, Dream-Coder and DiffuCoder (model type Dream)"

_NOT_QWEN2 = ("auto_map", "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "pad_token_id")


def matches(config: dict[str, Any]) -> bool:
    """Whether ``config.json`` is Dream's."""
    classes = config.get("architectures") or []
    return str(config.get("model_type")).lower() == "dream" or "DreamModel" in classes


def load(source: str, config: dict[str, Any], options: LoadOptions) -> TransformersPolicy:
    """Loads the weights into ``Qwen2ForCausalLM``; position i - 1 predicts token i.

    Raises:
        UserError: sliding-window attention, or tensors that are missing or left over.
    """
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

    model = load_model(Qwen2ForCausalLM, source, options, config=qwen2_config(config), strict=True)
    # Dream's own tokenizer class is Qwen2's but for its name.
    tokenizer = load_tokenizer(source, config, Qwen2Tokenizer)
    return TransformersPolicy(model, tokenizer, layout=Layout(read_files(source)), **options.policy_arguments())


def qwen2_config(config: dict[str, Any]) -> Any:
    """The ``Qwen2Config`` of a Dream configuration.

    Raises:
        UserError: sliding-window attention.
    """
    from transformers import Qwen2Config

    if config.get("use_sliding_window"):
        raise UserError("a Dream with use_sliding_window: windows to one side only are not supported")
    settings = Qwen2Config.from_dict({name: value for name, value in config.items() if name not in _NOT_QWEN2})
    settings.is_causal = False
    settings.use_cache = False
    settings.shift_logits = True
    return settings
