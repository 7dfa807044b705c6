"""A small denoiser from scratch: a Llama of transformers that attends both ways, with random weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class SmallLlama(PolicySource):
    """Base class of denoisers with random weights; a subclass says what their tokens are.

    Args:
        hidden_size, num_layers, num_heads: of the transformer; the MLP is 8/3 as wide as the hidden states.
        max_length: positions the configuration admits.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, hidden_size: int = 96, num_layers: int = 4, num_heads: int = 4, max_length: int = 128) -> None:
        fitting = num_heads >= 1 and hidden_size % (2 * num_heads) == 0
        check(fitting, self, "hidden_size", hidden_size, "a multiple of 2 * num_heads")
        check(num_layers >= 1, self, "num_layers", num_layers, "at least 1")
        check(max_length >= 1, self, "max_length", max_length, "at least 1")
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.max_length = max_length

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the tokenizer, which has padding, a mask and an end of text.

        Raises:
            UserError: it cannot be had.
        """

    def load(self) -> TransformersPolicy:
        """Builds the model with random weights (torch's global generator) and its tokenizer."""
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = self.tokenizer()
        config = LlamaConfig(  # type: ignore[call-arg]  # transformers accepts attributes its stubs do not list
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=self.hidden_size * 8 // 3,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            max_position_embeddings=self.max_length,
            tie_word_embeddings=True,
            is_causal=False,
            use_cache=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            mask_token_id=tokenizer.mask_token_id,
        )
        return TransformersPolicy(LlamaForCausalLM(config), tokenizer)
