"""A2D models of dllm: Llama, Qwen2 and Qwen3 that were trained on to denoise, attending both ways.

Blocks and names of tensors are those of the model that they come from. Those that dllm trained as BD3-LM denoise block
by block, with blocks counted from the end of the prompt, which no policy here does; ``config.json`` does not tell the
two apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import ConfigJson
from dlmrl_kit.policies.families.bidirectional import Bidirectional, both_ways
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.options import LoadOptions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NATIVE = {f"a2d-{name}": name for name in ("llama", "qwen2", "qwen3")}
"""Model types of A2D, and those of transformers' classes."""

_OWN = ("architectures", "auto_map", "model_type", "dtype", "torch_dtype", "transformers_version", "pad_token_id")
# Padding is left out since it may be a text's end, and transformers would give its embedding no gradient.


class A2D(Bidirectional):
    """A2D's weights in the class of the model that they come from."""

    supported = "dllm's A2D (model types a2d-llama, a2d-qwen2, a2d-qwen3)"

    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether ``config.json`` is that of an A2D model."""
        return config.get("model_type") in NATIVE

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns the configuration of the model that it comes from, without its causal mask.

        Raises:
            UserError: sliding windows, or a block size.
        """
        from transformers import AutoConfig

        if config.get("use_sliding_window"):
            raise UserError("an A2D model with use_sliding_window: windows to one side only are not supported")
        if options.block_size is not None or config.get("block_size") is not None:
            raise UserError(
                "an A2D model with block_size (BD3-LM): its blocks are counted from the end of the prompt, which is "
                "not supported; models that were trained as MDLM have none"
            )
        known = {"bos_token_id": None, "eos_token_id": None}  # Llama's class would name its own
        known |= {name: value for name, value in config.items() if name not in _OWN}
        return both_ways(AutoConfig.for_model(NATIVE[str(config["model_type"])], **known))

    def checkpoint_config(self, folder: str, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """As ``model_config``."""
        return self.model_config(config, options)

    def layout(self, folder: str, config: ConfigJson) -> Layout | None:
        """Returns the files of the checkpoint."""
        return Layout(read_files(folder))
