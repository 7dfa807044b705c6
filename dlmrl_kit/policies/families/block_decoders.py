"""Block diffusion on decoders that transformers has a class for, with blocks counted as in SDAR.

Fast-dLLM v2 (arXiv 2509.26328): Qwen2, blocks of 32, and the logits at position i - 1 predict token i. So the first
token of a block is predicted by the last of the block before, which is finished then. The released generator commits
that token first, greedily; here it is a position as any other.

Stable-DiffCoder (arXiv 2601.15892): Llama, blocks of 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.policies.checkpoint_files import ConfigJson
from dlmrl_kit.policies.families.sdar import SDAR
from dlmrl_kit.policies.options import LoadOptions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from dlmrl_kit.policies.checkpoint_files import ModelClass


class FastDLLM(SDAR):
    """Fast-dLLM v2's weights in ``Qwen2ForCausalLM``, under a block-causal mask; logits are shifted by one."""

    supported = "Fast-dLLM v2 (model type Fast_dLLM_Qwen)"
    kind = "Fast_dLLM_Qwen"
    architecture = "Fast_dLLM_QwenForCausalLM"
    native = "qwen2"
    mask_token = "|<MASK>|"
    block_setting = "bd_size"
    released_block = 32

    def model_class(self) -> ModelClass:
        """``Qwen2ForCausalLM``."""
        from transformers import Qwen2ForCausalLM

        return Qwen2ForCausalLM

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """As ``SDAR``, with shifted logits."""
        settings = super().model_config(config, options)
        settings.shift_logits = True
        return settings


class StableDiffCoder(SDAR):
    """Stable-DiffCoder's weights in ``LlamaForCausalLM``, under a block-causal mask."""

    supported = "Stable-DiffCoder (StableDiffcoderForCausalLM)"
    kind = "stable_diffcoder"
    architecture = "StableDiffcoderForCausalLM"
    native = "llama"
    mask_token = "<[MASK_TOKEN]>"
    released_block = 4

    def model_class(self) -> ModelClass:
        """``LlamaForCausalLM``."""
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM
