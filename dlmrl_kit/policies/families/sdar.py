"""SDAR (arXiv 2510.06303) and TraDo (arXiv 2509.06949): block diffusion on Qwen3.

The published blocks and tensor names are Qwen3's; what differs is the attention mask (``BlockCausalPolicy``).
``block_size`` is read from ``config.json``; the first releases have none there, and it must be given (4 for the plain
SDAR and TraDo checkpoints, N for those named -bN).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.block_causal import BlockCausalPolicy
from dlmrl_kit.policies.checkpoint_files import end_of_turn, load_model, load_tokenizer
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.options import LoadOptions

SUPPORTED = "SDAR and TraDo (model type sdar)"

_NOT_QWEN3 = (
    *("architectures", "auto_map", "attn_implementation", "_attn_implementation", "debug", "dtype", "ep_size"),
    *("fuse_cross_entropy", "micro_forward", "model_type", "skip_checkpoint", "torch_dtype", "transformers_version"),
    *("use_deepep", "pad_token_id"),  # padding is a text's end, and transformers would give its embedding no gradient
)


def matches(config: dict[str, Any]) -> bool:
    """Whether ``config.json`` is SDAR's, or that of one which the kit saved as Qwen3 with a block size."""
    classes = config.get("architectures") or []
    saved = config.get("model_type") == "qwen3" and config.get("block_size") is not None
    return saved or config.get("model_type") in ("sdar", "sdar_moe") or "SDARForCausalLM" in classes


def load(source: str, config: dict[str, Any], options: LoadOptions) -> BlockCausalPolicy:
    """Loads the weights into ``Qwen3ForCausalLM``; the end of text is that of a turn, where there is a chat template.

    Raises:
        UserError: the mixture-of-experts variant, sliding windows, no block size, another block size than the
            checkpoint's, or tensors that are missing or left over.
    """
    from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

    settings = qwen3_config(config, options.block_size)
    model = load_model(Qwen3ForCausalLM, source, options, config=settings, strict=True)
    tokenizer = load_tokenizer(source, config, Qwen2Tokenizer if _qwen_tokenizer(source) else None)
    own = None if config.get("model_type") == "qwen3" else Layout(read_files(source))
    policy = BlockCausalPolicy(model, tokenizer, layout=own, **options.policy_arguments())
    end = end_of_turn(source, tokenizer)
    policy.eos_id = policy.eos_id if end is None else end
    return policy


def qwen3_config(config: dict[str, Any], block_size: int | None = None) -> Any:
    """The ``Qwen3Config`` of an SDAR configuration, with ``block_size``.

    Raises:
        UserError: what ``load`` says of configurations.
    """
    from transformers import Qwen3Config

    if config.get("model_type") == "sdar_moe":
        raise UserError("the mixture-of-experts variant of SDAR (model type sdar_moe) is not supported")
    if config.get("use_sliding_window"):
        raise UserError("an SDAR with use_sliding_window: windows and blocks together are not supported")
    published = config.get("block_size")
    if block_size is not None and published is not None and block_size != published:
        raise UserError(f"block_size = {block_size}, but the checkpoint was trained with {published} (config.json)")
    settings = Qwen3Config.from_dict({name: value for name, value in config.items() if name not in _NOT_QWEN3})
    settings.block_size = published if block_size is None else block_size
    settings.use_cache = False
    return settings


def _qwen_tokenizer(source: str) -> bool:
    """Whether the tokenizer is Qwen's, whose own class needs no code of the checkpoint."""
    about = Path(source) / "tokenizer_config.json"
    return about.is_file() and "Qwen2" in str(json.loads(about.read_text(encoding="utf-8")).get("tokenizer_class"))
