"""A small denoiser from scratch: a bidirectional Llama over single characters, with a real tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.small_llama import SmallLlama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dlmrl_kit.policies.transformers_policy import TransformersPolicy

_SPECIAL = ["<pad>", "<mask>", "<eos>", "<unk>"]


@register("policy")
class CharacterLlama(SmallLlama):
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
        super().__init__(hidden_size, num_layers, num_heads, max_length)
        self.characters = characters

    def load(self) -> TransformersPolicy:
        """Builds the model with random weights (torch's global generator) and its tokenizer."""
        policy = super().load()
        policy.spelt_by = f"{type(self).__name__}.characters"
        return policy

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns a tokenizer with one token per character."""
        return character_tokenizer(self.characters)


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
