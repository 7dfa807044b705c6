"""Reads the conversations of a data set, and makes examples of the assistant's answers in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from dlmrl_kit.core.prompt import has_surrogates
from dlmrl_kit.core.registry import nearest
from dlmrl_kit.tasks.base import Example, normalised
from dlmrl_kit.tasks.fields import Fields
from dlmrl_kit.tasks.rows import Row, kind_of

Messages: TypeAlias = list[dict[str, str]]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may say something."""
TURNS = ("every", "last", "one")
"""Which of the assistant's answers are learned."""


@dataclass(frozen=True)
class MessageFields:
    """Says what the messages of a row are called.

    Args:
        messages: the field with the list of messages; a row without it has a prompt and an answer.
        role, content: the fields of a message.
        roles: the role here for each name in the data; None: the names are the roles.
        pair: the fields of a row with a prompt and an answer.
        system: what the system says where a conversation has no such message; None: nothing.
    """

    messages: str
    role: str
    content: str
    roles: Mapping[str, str] | None
    pair: Fields
    system: str | None

    def conversation(self, row: Row) -> Messages:
        """Returns the messages of a row, the last of which is the assistant's.

        Raises:
            ValueError: it is none that can be learned; says why.
        """
        messages = self._listed(row[self.messages]) if self.messages in row else self._pair(row)
        for number, message in enumerate(messages, start=1):
            if not message["content"].strip():
                raise ValueError(f"message {number}, of the {message['role']}, is empty")
            if has_surrogates(message["content"]):
                raise ValueError(f"message {number} has half of a surrogate pair, which is no character")
        said = [message["role"] for message in messages]
        if "assistant" not in said:
            raise ValueError("the assistant answers nothing: no message has its role")
        if said[-1] != "assistant":
            raise ValueError(f"the conversation ends with the message of the {said[-1]}, which nobody answers")
        if not {"user", "tool"} & {*said[: said.index("assistant")]}:
            raise ValueError("nothing is asked before the assistant's first answer")
        if self.system is not None and said[0] not in ("system", "developer"):
            return [{"role": "system", "content": self.system}, *messages]
        return messages

    def _listed(self, found: object) -> Messages:
        if not isinstance(found, list) or not found:
            raise ValueError(f"{self.messages!r} must be a list of messages, got {kind_of(found) if found else 'none'}")
        return [self._message(number, message) for number, message in enumerate(found, start=1)]

    def _message(self, number: int, message: object) -> dict[str, str]:
        pair = (self.role, self.content)
        if not isinstance(message, Mapping) or not all(isinstance(message.get(name), str) for name in pair):
            raise ValueError(f"message {number} must be an object with the texts {self.role!r} and {self.content!r}")
        name = message[self.role]
        known = dict(zip(ROLES, ROLES, strict=True)) if self.roles is None else self.roles
        if name not in known:
            raise ValueError(f"message {number}: no role {name!r}; {nearest(name, known)}; roles says what others are")
        return {"role": known[name], "content": message[self.content]}

    def _pair(self, row: Row) -> Messages:
        try:
            fields = self.pair.mapped(row) or {}
        except ValueError as error:
            raise ValueError(f"no field {self.messages!r}, and as prompt and answer: {error}") from error
        asked = fields["prompt"]
        if not isinstance(asked, str):
            raise ValueError(f"{self.pair.prompt!r} must be a text, got {kind_of(asked)}")
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": str(fields.get("answer", ""))}]


def answers(messages: Messages, turns: str) -> list[int]:
    """Returns the places of the assistant's answers that are learned: every one, the last, or one drawn by the text."""
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if turns == "every":
        return places
    if turns == "last":
        return places[-1:]
    digest = hashlib.sha256(identity(messages).encode()).digest()
    return [places[int.from_bytes(digest[:8], "big") % len(places)]]


def identity(messages: Messages) -> str:
    """Returns a text that is equal for conversations that are the same but for white space and Unicode."""
    return json.dumps([(message["role"], normalised(message["content"])) for message in messages])


def asked(messages: Messages) -> str:
    """Returns what the user says first, in the form in which questions are compared."""
    return next(normalised(message["content"]) for message in messages if message["role"] in ("user", "tool"))


def example_of(messages: Messages, place: int, chat: bool, most: int | None) -> Example:
    """Returns the example of the answer at a place: what stands before it is the prompt.

    Args:
        messages: of the conversation.
        place: of the answer.
        chat: whether the prompt is the conversation, for a chat template, or a text, of the messages one after another.
        most: as ``Example``.
    """
    before = messages[:place]
    prompt = before if chat else "\n\n".join(message["content"] for message in before) + "\n\n"
    return Example(prompt, messages[place]["content"], {"turn": place}, most=most)
