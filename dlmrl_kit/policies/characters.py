"""A small denoiser from scratch: a bidirectional Llama over single characters, with a real tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL = ["<pad>", "<mask>", "<eos>", "<unk>"]


@register("policy")
class CharacterLlama(PolicySource):
    """A Llama of transformers with random weights that attends both ways, and whose tokens are single characters.

    Args:
        characters: the vocabulary, besides padding, mask, end of text and unknown.
        hidden_size, num_layers, num_heads: of the transformer; the MLP is 8/3 as wide as the hidden states.
        max_length: positions the configuration admits.

    Raises:
        ValueError: a value out of range, or a repeated character.
    """

    def __init__(
        self,
        characters: str = "0123456789_:=+-*/() ",
        hidden_size: int = 96,
        num_layers: int = 4,
        num_heads: int = 4,
        max_length: int = 128,
    ) -> None:
        distinct = len(characters) > 0 and len(set(characters)) == len(characters)
        check(distinct, self, "characters", characters, "distinct characters")
        fitting = num_heads >= 1 and hidden_size % (2 * num_heads) == 0
        check(fitting, self, "hidden_size", hidden_size, "a multiple of 2 * num_heads")
        check(num_layers >= 1, self, "num_layers", num_layers, "at least 1")
        check(max_length >= 1, self, "max_length", max_length, "at least 1")
        self.characters = characters
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.max_length = max_length

    def load(self) -> TransformersPolicy:
        """Builds the model with random weights (torch's global generator) and its tokenizer."""
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = character_tokenizer(self.characters)
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


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per character; decoding joins them without spaces."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        mask_token="<mask>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
