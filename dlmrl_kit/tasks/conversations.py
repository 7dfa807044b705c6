"""Conversations to learn from: supervised fine-tuning on what the assistant answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, SupportsIndex

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.validate import check
from dlmrl_kit.tasks.base import Example, check_split, normalised
from dlmrl_kit.tasks.data_task import DataTask
from dlmrl_kit.tasks.fields import Fields
from dlmrl_kit.tasks.rows import Origin, Rows, read_rows
from dlmrl_kit.tasks.turns import ROLES, TURNS, MessageFields, Messages, answers, asked, example_of, identity


class Learned(NamedTuple):
    """The answers to learn, and those that measure.

    Attributes:
        answers: by split: conversation, place of the answer in it, and where the row is to be found.
        origins: where the rows were read.
        notes: in words, what was left out.
    """

    answers: dict[str, list[tuple[Messages, int, str]]]
    origins: list[Origin]
    notes: list[str]


@register("task", paper="arXiv 2502.09992, section 2.3 and appendix B.1")
class Conversations(DataTask):
    """Conversations, or prompts with answers, from a file or a data set: the assistant's answers are learned.

    A row has ``messages``, a list of objects with the texts ``role`` and ``content``, or else a ``prompt`` and an
    ``answer``. Each answer is an example, whose prompt is all that stands before it; so the loss falls on the answer
    alone, and earlier answers are seen. The ``pretrain`` split is learned, ``heldout`` measures; ``train`` is empty. A
    completion is solved if it is the answer, but for white space; that is also its reward.

    Conversations that repeat one are left out, and so are those that ask first what a held-out one asks; a run says how
    many.

    Args:
        data, config, split, revision, test_data, test_split, test_revision: as ``DataTask``.
        holdout: conversations at the end of ``data``, at most half of them, that are held out where there is no other
            test set.
        turns: the answers that are learned: ``every``; the ``last`` of each conversation; or ``one`` of each, drawn by
            its text, so that long conversations do not count more than short ones, as LLaDA does.
        messages_field, role_field, content_field: what these are called.
        roles: the role for each name in the data, as ``{'human': 'user', 'gpt': 'assistant'}``; None: names are
            system, developer, user, assistant and tool.
        prompt_field, answer_field: of rows without messages. An answer that is no text becomes one, as JSON.
        template: a text with ``{field}`` for fields of the row, which is the prompt instead.
        system: what the system says in conversations that have no such message; None: nothing.
        chat: whether the model's chat template formats them; if not, the messages before an answer are one text with
            empty lines between them, for base models.
        max_prompt_tokens: longer prompts are cut from the left, and a run says how many are. None: none is.

    Raises:
        ValueError: a parameter out of its range.
    """

    @with_parameters_of(DataTask)
    def __init__(
        self,
        data: str,
        holdout: int = 200,
        turns: Literal["every", "last", "one"] = "every",
        messages_field: str = "messages",
        role_field: str = "role",
        content_field: str = "content",
        roles: dict[str, str] | None = None,
        prompt_field: str = "prompt",
        answer_field: str = "answer",
        template: str | None = None,
        system: str | None = None,
        chat: bool = True,
        max_prompt_tokens: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(data=data, holdout=holdout, **others)
        check(turns in TURNS, self, "turns", turns, f"one of {', '.join(TURNS)}")
        check(max_prompt_tokens is None or max_prompt_tokens >= 1, self, "max_prompt_tokens", max_prompt_tokens, ">= 1")
        known = roles is None or (isinstance(roles, dict) and all(role in ROLES for role in roles.values()))
        check(known, self, "roles", roles, f"a dict from names to {', '.join(ROLES)}")
        named = {"messages_field": messages_field, "role_field": role_field, "content_field": content_field}
        pair = Fields(prompt_field, answer_field, "", template)
        pair.check(self, **named, prompt_field=prompt_field, answer_field=answer_field)
        said = system is None or (isinstance(system, str) and bool(system.strip()))
        check(said, self, "system", system, "a text that is not empty, or None")
        self.turns = turns
        self.messages_field, self.role_field, self.content_field = messages_field, role_field, content_field
        self.roles, self.prompt_field, self.answer_field = roles, prompt_field, answer_field
        self.template, self.system, self.chat, self.max_prompt_tokens = template, system, chat, max_prompt_tokens
        self._fields = MessageFields(messages_field, role_field, content_field, roles, pair, system)

    def origins(self) -> Sequence[Origin]:
        """Returns where learned and held-out conversations were read."""
        return self._learned.origins

    def left_out(self) -> Sequence[str]:
        """Returns how many conversations repeat one, and how many begin as a held-out one does."""
        return self._learned.notes

    def size(self, split: str) -> int:
        """Returns the number of answers of a split.

        Raises:
            ValueError: unknown split.
            UserError: the data cannot be read.
        """
        check_split(self, split)
        return len(self._learned.answers[split])

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Returns example ``index`` of a split, in the order of the data.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split.
        """
        position = self._position(split, index)
        messages, place, _ = self._learned.answers[split][position]
        return example_of(messages, place, self.chat, self.max_prompt_tokens)

    def place(self, split: str, index: int) -> str:
        """Returns the file and line, or the data set and row, of the conversation, and the number of the answer."""
        _, place, where = self._learned.answers[split][index]
        return f"{where}, message {place + 1}"

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Returns ``solved``, 1 if the completion is the answer but for white space, and the same as ``reward``."""
        same = float(isinstance(completion, str) and normalised(completion) == normalised(example.answer))
        return {"reward": same, "solved": same}

    @cached_property
    def _learned(self) -> Learned:
        """The answers of each split, read when they are first needed."""
        sets = [read_rows(source) for source in self.sources()]
        notes: list[str] = []
        train, *other = [self._read(rows, notes) for rows in sets]
        held = min(self.holdout, len(train) // 2)
        test = other[0] if other else train[len(train) - held :]
        train = train if other else train[: len(train) - held]
        known = {asked(messages) for messages, _ in test}
        kept = [(messages, where) for messages, where in train if asked(messages) not in known]
        if len(kept) < len(train):
            shared = f"{len(train) - len(kept)} conversations begin as a held-out one does and are not learned"
            notes.append(shared)
        if not kept or not test:
            few = f"{self.data} has {len(train)} conversations, of which {len(kept)} can be learned"
            raise RecipeError(f"{few} and {len(test)} are held out: at least one of each is needed; or name test_data")
        splits = {"pretrain": kept, "train": [], "heldout": test}
        found = {
            split: [(messages, place, where) for messages, where in part for place in answers(messages, self.turns)]
            for split, part in splits.items()
        }
        return Learned(found, [rows.origin for rows in sets], notes)

    def _read(self, rows: Rows, notes: list[str]) -> list[tuple[Messages, str]]:
        """Returns the conversations of some rows, each once, with their places; adds to the notes what is left out.

        Raises:
            RecipeError: a row is none that can be learned, or there is none.
        """
        found: dict[str, tuple[Messages, str]] = {}
        for number, row in enumerate(rows.rows):
            where = rows.origin.place(number)
            try:
                messages = self._fields.conversation(row)
            except ValueError as error:
                raise RecipeError(f"{where}: {error}") from error
            found.setdefault(identity(messages), (messages, where))
        if not found:
            raise RecipeError(f"{rows.origin.source} has no conversations")
        if len(found) < len(rows.rows):
            notes.append(f"{len(rows.rows) - len(found)} conversations repeat one and are left out")
        return list(found.values())
