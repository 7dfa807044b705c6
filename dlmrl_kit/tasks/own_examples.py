"""Reads the examples of a user's data: every row checked, splits that share no question, repetitions counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.files import reason_of
from dlmrl_kit.core.prompt import Prompt, fault_of, is_message
from dlmrl_kit.core.validate import refuse_value
from dlmrl_kit.tasks.base import INSTRUCTING, BaseTask, Example, normalised, question_text, split_of
from dlmrl_kit.tasks.fields import Fields
from dlmrl_kit.tasks.rows import Origin, Row, Source, kind_of, read_rows, rows_of_file

HUB_SPLITS = {"train": "train", "test": "heldout"}
"""What the splits of a data set of the hub are here, unless the user says otherwise."""


class OwnExamples:
    """The examples of each split of a file or data set, and the place of each; ``JsonLines`` says what rows are.

    Warns of the rows that are left out because they ask what an earlier one asks.

    Args:
        task: whose parameter ``path`` the data are.
        source: the file, or the data set with its configuration and revision.
        fields: what the rows call prompt, answer and split.

    Raises:
        ValueError: anything wrong with the data; with file and line, where it is a line.
    """

    def __init__(self, task: BaseTask, source: Source, fields: Fields) -> None:
        self.source, self._fields = source, fields
        self.origins: list[Origin] = []
        found = _Found()
        try:
            for place, label, row in self._rows():
                try:
                    mapped = fields.mapped(row)
                    if mapped is not None:
                        found.add(place, label, _checked(mapped))
                except ValueError as error:
                    raise ValueError(f"{place}: {error}") from error
        except OSError as error:
            refuse_value(task, "path", f"{source.path!r} cannot be read: {reason_of(error)}")
        except (ValueError, UserError) as error:
            refuse_value(task, "path", str(error), joint=": ")
        if not any(found.examples.values()):
            reason = f"{source.path} has no examples; write one JSON object with a {fields.prompt!r} on each line"
            refuse_value(task, "path", reason, joint=": ")
        if found.repeated:
            warnings.warn(f"{source.path}: {found.repetitions()}", RuntimeWarning, stacklevel=4)
        self.examples, self.places = found.examples, found.places

    def _rows(self) -> Iterator[tuple[str, str, Row]]:
        """Yields the rows, each with its place (file and line, or data set, split and row), and with it in short."""
        place = self.source.local
        if place is None and not self._is_data_set():
            place = Path(self.source.path)  # whose error says that there is no such file
        if place is not None and (place.is_file() or not self._is_data_set()):
            for number, row in rows_of_file(place, unknown=".jsonl"):
                yield f"{place}:{number}", f"line {number}", row
            return
        for split in self._fields.splits or HUB_SPLITS:
            rows = read_rows(Source(self.source.path, split, self.source.config, self.source.revision))
            self.origins.append(rows.origin)
            for number, row in enumerate(rows.rows):
                yield rows.origin.place(number), rows.origin.place(number), {**row, self._fields.split: split}

    def _is_data_set(self) -> bool:
        """Tells whether the path is an id of the hub, or a folder that may be laid out like a data set of it."""
        place = self.source.local
        return place.is_dir() and place != Path("/") if place is not None else self.source.path.count("/") == 1


class _Found:
    """The examples, row after row."""

    def __init__(self) -> None:
        self.examples: dict[str, list[Example]] = {split: [] for split in BaseTask.SPLITS}
        self.places: dict[str, list[str]] = {split: [] for split in BaseTask.SPLITS}
        self.repeated: list[tuple[str, str]] = []  # this row repeats that one
        self.contradicting: list[tuple[str, str]] = []  # and those of them that answer otherwise
        self._explicit: bool | None = None
        self._homes: dict[str, tuple[str, str]] = {}  # first row and split of each question
        self._first: dict[tuple[str, ...], tuple[str, Example]] = {}  # first row and example of each prompt

    def add(self, place: str, label: str, fields: dict[str, Any]) -> None:
        """Takes the fields of a row.

        Args:
            place: of the row.
            label: what messages call the row.
            fields: of the row.

        Raises:
            ValueError: its split contradicts an earlier row.
        """
        if self._explicit not in (None, "split" in fields):
            raise ValueError("either all lines have a 'split' or none; this one differs from the first")
        self._explicit = "split" in fields
        prompt, answer, split = fields.pop("prompt"), fields.pop("answer", ""), fields.pop("split", None)
        question = question_text(prompt)
        if not question:
            raise ValueError("'prompt' has no character that can be seen")
        split = split or split_of(question)
        first, home = self._homes.setdefault(question, (label, split))
        if home != split:
            raise ValueError(f"the prompt of {first}, which is in {home}, is in {split} here")
        example = Example(prompt, answer, fields)
        earlier, kept = self._first.setdefault((question, *_instructions(prompt)), (label, example))
        if earlier == label:
            self.examples[split].append(example)
            self.places[split].append(place)
            return
        self.repeated.append((label, earlier))
        if (normalised(answer), fields) != (normalised(kept.answer), kept.meta):
            self.contradicting.append((label, earlier))

    def repetitions(self) -> str:
        """Says which rows were left out."""
        label, earlier = self.repeated[0]
        what = f"lines left out, for they ask what an earlier line asks: {len(self.repeated)} ({label} as {earlier})"
        if not self.contradicting:
            return what
        label, earlier = self.contradicting[0]
        differing = f"of these with another answer or other fields: {len(self.contradicting)}"
        return f"{what}; {differing} ({label} than {earlier})"


def _instructions(prompt: Prompt) -> list[str]:
    """Returns what a conversation says before it asks: two prompts that differ there are two examples."""
    if isinstance(prompt, str):
        return []
    return [normalised(message["content"]) for message in prompt if message["role"] in INSTRUCTING]


def _checked(fields: Row) -> dict[str, Any]:
    """Returns the fields of a row, with a prompt that can be one.

    Raises:
        ValueError: it cannot.
    """
    _check_prompt(fields["prompt"])
    return fields


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str | list):
        raise ValueError(f"'prompt' must be a text, got {kind_of(prompt)} (a list of messages will do)")
    if not prompt:
        raise ValueError("'prompt' is empty")
    for message in prompt if isinstance(prompt, list) else ():
        if not is_message(message):
            raise ValueError("a message of 'prompt' must be an object with the texts 'role' and 'content'")
    if (fault := fault_of(prompt)) is not None:
        raise ValueError(fault)
