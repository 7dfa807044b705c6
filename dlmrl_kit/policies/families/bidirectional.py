"""Llama, Qwen2 and Qwen3 checkpoints as transformers writes them, run both ways with ``is_causal=False``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.policies.checkpoint_files import ConfigJson, without_remote_code
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.layout import Layout
from dlmrl_kit.policies.options import LoadOptions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from dlmrl_kit.policies.checkpoint_files import ModelClass

BIDIRECTIONAL = ("llama", "qwen2", "qwen3", "qwen3_moe")
"""Model types that transformers (>= 5.2) runs bidirectionally with ``is_causal=False``."""


class Bidirectional(Family):
    """Decoders that transformers has a class for. Causal ones attend both ways from here on."""

    supported = "Llama, Qwen2 and Qwen3 saved by transformers (model types llama, qwen2, qwen3, qwen3_moe)"

    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether transformers has the model's class and runs it both ways."""
        return config.get("model_type") in BIDIRECTIONAL and without_remote_code(config)

    def model_class(self) -> ModelClass:
        """``AutoModelForCausalLM``."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns transformers' configuration, without its causal mask."""
        from transformers import AutoConfig

        return both_ways(AutoConfig.for_model(**config))

    def checkpoint_config(self, folder: str, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Reads the configuration as transformers does; returns it without its causal mask."""
        from transformers import AutoConfig

        return both_ways(AutoConfig.from_pretrained(folder))

    def empty_model(self, config: ConfigJson, options: LoadOptions) -> PreTrainedModel:
        """Builds the model with random weights; see ``Family.empty_model``."""
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_config(self.model_config(config, options))
        return model

    def layout(self, folder: str, config: ConfigJson) -> Layout | None:
        """Returns None: the checkpoint is written as transformers writes it."""
        return None


def both_ways(settings: PretrainedConfig) -> PretrainedConfig:
    """Returns a decoder's configuration, changed so that it attends both ways and keeps no keys and values."""
    settings.is_causal = False
    settings.use_cache = False
    return settings
