"""A small denoiser from scratch whose tokens are subwords, and the tokenizer of such a one (BPE, arXiv 1508.07909).

Texts are pieces of bytes, as in GPT-2, so that no character lacks a token; digits are tokens of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.dependencies import anchored_path
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.small_llama import SmallLlama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "mask_token": "<mask>", "eos_token": "<eos>"}
"""Tokens that are no text."""
SMALLEST = 256 + len(SPECIAL)
"""Tokens of the smallest vocabulary: every byte, and the special ones."""
FILE = "tokenizer.json"


@register("policy")
class SubwordLlama(SmallLlama):
    """A Llama of transformers with random weights that attends both ways, and whose tokens are subwords.

    Args:
        tokenizer_path: folder of the tokenizer, as ``dlmrl tokenizer`` writes it.
        hidden_size, num_layers, num_heads: of the transformer; the MLP is 8/3 as wide as the hidden states.
        max_length: positions the configuration admits.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        tokenizer_path: str,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        max_length: int = 256,
    ) -> None:
        named = isinstance(tokenizer_path, str) and bool(tokenizer_path)
        check(named, self, "tokenizer_path", tokenizer_path, "the folder of a tokenizer")
        super().__init__(hidden_size, num_layers, num_heads, max_length)
        self.tokenizer_path = tokenizer_path

    @classmethod
    def anchored(cls, settings: Mapping[str, object]) -> dict[str, object]:
        """Makes the path of the tokenizer absolute."""
        path = anchored_path(settings.get("tokenizer_path"))
        return {} if path is None else {"tokenizer_path": path}

    def files(self) -> tuple[Path, ...]:
        """Returns the files of the tokenizer."""
        return tuple(sorted(Path(self.tokenizer_path).expanduser().glob("*.json")))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Reads the tokenizer.

        Raises:
            UserError: there is none in the folder, or it lacks padding, a mask or an end of text.
        """
        from transformers import PreTrainedTokenizerFast

        folder = Path(self.tokenizer_path).expanduser()
        if not (folder / FILE).is_file():
            raise UserError(
                f"SubwordLlama.tokenizer_path: there is no {folder / FILE}; make one with: dlmrl tokenizer RECIPE "
                f"--out {folder}"
            )
        try:
            found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:  # tokenizers raises Exception itself
            raise UserError(f"SubwordLlama.tokenizer_path: {folder} cannot be read: {error}") from error
        lacking = [name for name in SPECIAL if getattr(found, f"{name}_id") is None]
        if lacking:
            raise UserError(f"SubwordLlama.tokenizer_path: the tokenizer in {folder} has no {' and no '.join(lacking)}")
        return found


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of byte-level subwords; the same texts in the same order give the same one.

    Args:
        texts: to learn from.
        vocab_size: tokens in all, at least ``SMALLEST``; there are fewer where the texts have no more pairs to merge.

    Raises:
        UserError: a smaller vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST:
        raise UserError(f"a vocabulary of {vocab_size} tokens is too small: bytes and special tokens are {SMALLEST}")
    tokenizer = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", clean_up_tokenization_spaces=False, **SPECIAL
    )
