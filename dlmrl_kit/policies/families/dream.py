"""Dream 7B (arXiv 2508.15487), Dream-Coder, DiffuCoder (arXiv 2506.20639): Qwen2 both ways, logits shifted by one.

DreamOn is a Dream that may also write "make this mask two" and "delete this mask". Completions have a fixed length
here, so that the former is never written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import ConfigJson, architectures, load_tokenizer
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.families.bidirectional import both_ways
from dlmrl_kit.policies.options import LoadOptions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from dlmrl_kit.policies.checkpoint_files import ModelClass

_NOT_QWEN2 = ("auto_map", "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "pad_token_id")
# Padding is left out since it is the end of text, and transformers would give its embedding no gradient.


EXPAND = "<|expand|>"
"""DreamOn's token for two masks in place of one."""


class Dream(Family):
    """Dream's weights in ``Qwen2ForCausalLM``; position i - 1 predicts token i."""

    supported = "Dream 7B, Dream-Coder, DreamOn and DiffuCoder (model type Dream)"

    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether ``config.json`` is Dream's."""
        return str(config.get("model_type")).lower() == "dream" or "DreamModel" in architectures(config)

    def model_class(self) -> ModelClass:
        """``Qwen2ForCausalLM``."""
        from transformers import Qwen2ForCausalLM

        return Qwen2ForCausalLM

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns the ``Qwen2Config`` of a Dream configuration.

        Raises:
            UserError: sliding-window attention.
        """
        from transformers import Qwen2Config

        if config.get("use_sliding_window"):
            raise UserError("a Dream with use_sliding_window: windows to one side only are not supported")
        settings = Qwen2Config.from_dict({name: value for name, value in config.items() if name not in _NOT_QWEN2})
        settings.shift_logits = True
        return both_ways(settings)

    def tokenizer(self, folder: str, config: ConfigJson) -> PreTrainedTokenizerBase:
        """Loads Qwen2's tokenizer, which Dream's own class is but for its name."""
        from transformers import Qwen2Tokenizer

        return load_tokenizer(folder, config, Qwen2Tokenizer)

    def forbidden(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Returns DreamOn's token that changes the length, where the vocabulary has it."""
        found = tokenizer.get_vocab().get(EXPAND)
        return () if found is None else (found,)
