"""Prompts, and what is wrong with some before any tokenizer sees them.

This module imports no torch, so that the processes that score completions start fast.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import TypeAlias

Prompt: TypeAlias = str | list[dict[str, str]]
"""A text, or a conversation: messages with ``role`` and ``content`` for the tokenizer's chat template."""


def is_message(value: object) -> bool:
    """Tells whether a value read from a file is a message: the texts ``role`` and ``content``, and nothing else."""
    if not isinstance(value, Mapping) or set(value) != {"role", "content"}:
        return False
    return all(isinstance(text, str) for text in value.values())


def fault_of(prompt: Prompt) -> str | None:
    """Says why no policy can be asked a prompt; None if nothing is wrong with it.

    A conversation must end before the assistant's answer, which the policy is to write; and no text may hold half of a
    surrogate pair, which no tokenizer can read.
    """
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if any(has_surrogates(text) for text in texts):
        return "half of a surrogate pair (\\ud800 to \\udfff) in a text, which is no character"
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] == "assistant":
        return "the conversation ends with the assistant's answer, which the policy would see: end it before that"
    return None


def has_surrogates(text: str) -> bool:
    """Tells whether a text holds half of a surrogate pair, as JSON allows it to."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def is_meant(character: str) -> bool:
    """Tells whether a text is another without this character. Tokenizers drop white space, accents and controls."""
    return unicodedata.category(character)[0] in "LNPS"
