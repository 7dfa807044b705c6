"""SDAR (arXiv 2510.06303) and TraDo (arXiv 2509.06949): block diffusion on Qwen3.

The published blocks and tensor names are Qwen3's; what differs is the attention mask (``BlockCausalPolicy``).
``block_size`` is read from ``config.json``; the first releases have none there, and it must be given (4 for the plain
SDAR and TraDo checkpoints, N for those named -bN).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.block_causal import BlockCausalPolicy
from dlmrl_kit.policies.checkpoint_files import ConfigJson, architectures, load_tokenizer
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.layout import Layout
from dlmrl_kit.policies.model_files import read_json
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.text_bounds import distinct, end_of_turn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from dlmrl_kit.policies.checkpoint_files import ModelClass

_NOT_QWEN3 = (
    *("architectures", "auto_map", "attn_implementation", "_attn_implementation", "debug", "dtype", "ep_size"),
    *("fuse_cross_entropy", "micro_forward", "model_type", "skip_checkpoint", "torch_dtype", "transformers_version"),
    *("use_deepep", "pad_token_id"),  # padding is a text's end, and transformers would give its embedding no gradient
)


class SDAR(Family):
    """SDAR's weights in ``Qwen3ForCausalLM``, under a block-causal mask."""

    supported = "SDAR and TraDo (model type sdar)"
    policy_class = BlockCausalPolicy
    kind: ClassVar[str] = "sdar"
    """Model type of the published checkpoints."""
    architecture: ClassVar[str] = "SDARForCausalLM"
    """Class that their ``config.json`` names."""
    native: ClassVar[str] = "qwen3"
    """Model type of transformers' class."""
    mask_token: ClassVar[str] = "<|MASK|>"
    """The mask in the vocabulary, where neither ``config.json`` nor the tokenizer names one."""
    block_setting: ClassVar[str] = "block_size"
    """What ``config.json`` calls the positions of a block."""
    released_block: ClassVar[int | None] = None
    """The positions of a block in the released generator, where ``config.json`` does not name them; None: they vary."""

    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether ``config.json`` is SDAR's, or that of one which the kit saved as Qwen3 with a block size."""
        saved = config.get("model_type") == self.native and config.get("block_size") is not None
        return saved or config.get("model_type") == self.kind or self.architecture in architectures(config)

    def model_class(self) -> ModelClass:
        """``Qwen3ForCausalLM``."""
        from transformers import Qwen3ForCausalLM

        return Qwen3ForCausalLM

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns the configuration of transformers' class for the checkpoint's, with ``block_size``.

        Raises:
            UserError: sliding windows, or another block size than the checkpoint's.
        """
        from transformers import AutoConfig

        if config.get("use_sliding_window"):
            raise UserError(f"{self.supported} with use_sliding_window: windows and blocks together are not supported")
        given, published = options.block_size, config.get(self.block_setting, config.get("block_size"))
        if given is not None and published is not None and given != published:
            raise UserError(f"block_size = {given}, but the checkpoint was trained with {published} (config.json)")
        known = {"bos_token_id": None, "eos_token_id": None}  # Llama's class would name its own
        known |= {name: value for name, value in config.items() if name not in _NOT_QWEN3}
        settings: PretrainedConfig = AutoConfig.for_model(self.native, **known)
        settings.block_size = (published or self.released_block) if given is None else given
        settings.use_cache = False
        return settings

    def layout(self, folder: str, config: ConfigJson) -> Layout | None:
        """Returns the files of the checkpoint; None for one which the kit saved in transformers' layout."""
        saved = config.get("model_type") == self.native and self.architecture not in architectures(config)
        return None if saved else super().layout(folder, config)

    def tokenizer(self, folder: str, config: ConfigJson) -> PreTrainedTokenizerBase:
        """Loads the tokenizer: where it is Qwen's, by Qwen's own class, which needs no code of the checkpoint.

        Its mask is ``mask_token``, where nothing else names one.
        """
        from transformers import Qwen2Tokenizer

        about = Path(folder) / "tokenizer_config.json"
        known = about.is_file() and "Qwen2" in str(read_json(about).get("tokenizer_class"))
        tokenizer = load_tokenizer(folder, config, Qwen2Tokenizer if known else None)
        unnamed = config.get("mask_token_id") is None and tokenizer.mask_token is None
        if unnamed and self.mask_token in tokenizer.get_vocab():
            tokenizer.mask_token = self.mask_token
        return tokenizer

    def ends(self, folder: str, config: ConfigJson, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Returns the ids that end a text, the end of a turn first: it fills what a finished answer leaves open."""
        return distinct([end_of_turn(tokenizer), *super().ends(folder, config, tokenizer)])
