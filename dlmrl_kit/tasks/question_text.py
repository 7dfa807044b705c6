"""Prompts as texts, and the form in which questions are compared: which are the same, and in which split one is."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import unicodedata

from dlmrl_kit.core.prompt import Prompt

INSTRUCTING = ("system", "developer")
"""Roles of messages that say how to answer, and ask nothing."""


def prompt_text(prompt: Prompt) -> str:
    """Returns a prompt as one text: itself, or a conversation's messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def question_text(prompt: Prompt) -> str:
    """Returns what a prompt asks, as a text that is equal for prompts that ask the same in another form.

    White space and Unicode are normalised, a conversation's instructions (``INSTRUCTING``) are left out, and a user's
    only message is its text.
    """
    if isinstance(prompt, str):
        return normalised(prompt)
    messages = [message for message in prompt if message["role"] not in INSTRUCTING] or prompt
    said = [(message["role"], normalised(message["content"])) for message in messages]
    return said[0][1] if [role for role, _ in said] == ["user"] else json.dumps(said, ensure_ascii=False)


def normalised(text: str) -> str:
    """Returns a text in the form in which questions are compared.

    White space becomes single spaces, with none at the ends. Letters are composed; those that differ in width, and
    quotation marks and dashes in style, are one; invisible characters go, control characters among them. What carries
    a meaning stays: upper and lower case, exponents, fractions, mathematical letters.
    """
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", "".join(map(_plain, unicodedata.normalize("NFC", text))))
    return " ".join(text.split())


_MEANT = ("<super>", "<sub>", "<fraction>", "<font>", "<circle>")
"""Compatibility characters that say something else than the plain ones: 2² is not 22."""
_STYLES = dict.fromkeys("‘’‚‛′", "'") | dict.fromkeys("“”„‟″", '"') | dict.fromkeys("‐‑‒–—―−", "-")
"""Quotation marks and dashes, and what they are in plain text."""
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Joiners, fillers and variation selectors: they show nothing, and are no format characters by their category."""


@functools.lru_cache(4096)
def _plain(character: str) -> str:
    if character.isspace() or character == "\u2800":  # the last one is a Braille pattern without dots
        return " "
    # Zero-width characters, soft hyphens, marks; control characters.
    if character in _STYLES or unicodedata.category(character) in ("Cf", "Cc") or _UNSEEN.fullmatch(character):
        return _STYLES.get(character, "")
    if unicodedata.decomposition(character).startswith(_MEANT):
        return character
    return unicodedata.normalize("NFKC", character)


def split_of(text: str) -> str:
    """Returns the split of an example with this text, once it is ``normalised``; depends on nothing but the text."""
    digest = hashlib.sha256(normalised(text).encode(errors="surrogatepass")).digest()
    bucket = int.from_bytes(digest[:8], "big") % 5
    return ("pretrain", "pretrain", "train", "train", "heldout")[bucket]
