"""How texts begin and end in a checkpoint's tokens, and what its tokenizer writes for characters that it does not have.

A text may end in several ways: with the tokenizer's end of text, with what the chat template writes behind the
assistant's answer (LLaDA's ``<|eot_id|>``, Dream's ``<|im_end|>``), and with what ``generation_config.json`` and
``config.json`` list.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dlmrl_kit.policies.checkpoint_files import ConfigJson, token_ids
from dlmrl_kit.policies.special_ids import stated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER = "An answer of 17 words."
"""Stands for the assistant's answer in a conversation that is formatted to see what follows it."""

PROBES = ("1", "a", " a")
"""Texts of which every tokenizer has some tokens, to see what it puts in front of them."""

RARE = ("\U00012000", "\U00012001")
"""Two characters (cuneiform) that hardly any vocabulary has."""


def listed_ends(folder: str, config: ConfigJson) -> tuple[int, ...]:
    """Returns the ends of text that ``generation_config.json`` and ``config.json`` of a checkpoint folder list.

    Raises:
        UserError: ``generation_config.json`` cannot be read.
    """
    return distinct(index for settings in stated(folder, config).values() for index in token_ids(settings, "eos"))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the special token that the chat template writes behind the assistant's answer; None: there is none."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # templates raise what they like; one that refuses these messages tells nothing
        return None
    _, found, behind = text.rpartition(ANSWER)
    special = {str(tokenizer.convert_ids_to_tokens(i)): i for i in tokenizer.all_special_ids}
    special |= {added.content: i for i, added in tokenizer.added_tokens_decoder.items()}
    written = [token for token in special if found and token and behind.lstrip().startswith(token)]
    return special[max(written, key=len)] if written else None


def beginning(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns the tokens that the tokenizer puts in front of a text by itself, such as its beginning of text."""
    for probe in PROBES:
        plain: list[int] = tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole: list[int] = tokenizer(probe)["input_ids"]
        for first in range(len(whole) - len(plain) + 1) if plain else ():
            if whole[first : first + len(plain)] == plain:
                return tuple(whole[:first])
    return ()


def unknown_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns the tokens that stand for characters that a tokenizer does not have, declared as such or not."""
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in RARE)
    written = first if first == second and len(first) == 1 else []
    return distinct([*written, tokenizer.unk_token_id])


def distinct(ids: Iterable[int | None]) -> tuple[int, ...]:
    """Returns ids in their order, each once, without None."""
    return tuple(dict.fromkeys(index for index in ids if index is not None))
