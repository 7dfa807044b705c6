"""Reads the examples of a JSON Lines file: every line checked, splits that share no question, repetitions counted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlmrl_kit.core.prompt import Prompt, fault_of, has_surrogates
from dlmrl_kit.core.registry import nearest
from dlmrl_kit.core.validate import refuse_value
from dlmrl_kit.tasks.base import BaseTask, Example, normalised, question_text, split_of


def read_examples(task: BaseTask, path: Path) -> tuple[dict[str, list[Example]], dict[str, list[int]]]:
    """Returns the examples of each split of a file, and the numbers of their lines; ``JsonLines`` says what lines are.

    Warns of the lines that are left out because they ask what an earlier one asks.

    Args:
        task: whose parameter ``path`` the file is.
        path: of the file.

    Raises:
        ValueError: anything wrong with the file; with file and line, where it is a line.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        refuse_value(task, "path", f"{str(path)!r} cannot be read: {error.strerror}")
    found = _Found()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.add(number, _fields(line))
        except ValueError as error:
            refuse_value(task, "path", f"{path}:{number}: {error}", joint=": ")
    if not any(found.examples.values()):
        reason = f"{path} has no examples; write one JSON object with a 'prompt' on each line"
        refuse_value(task, "path", reason, joint=": ")
    if found.repeated:
        warnings.warn(f"{path}: {found.repetitions()}", RuntimeWarning, stacklevel=4)
    return found.examples, found.lines


class _Found:
    """The examples of a file, line after line."""

    def __init__(self) -> None:
        self.examples: dict[str, list[Example]] = {split: [] for split in BaseTask.SPLITS}
        self.lines: dict[str, list[int]] = {split: [] for split in BaseTask.SPLITS}
        self.repeated: list[tuple[int, int]] = []  # this line repeats that one
        self.contradicting: list[tuple[int, int]] = []  # and those of them that answer otherwise
        self._explicit: bool | None = None
        self._homes: dict[str, tuple[int, str]] = {}  # first line and split of each question
        self._first: dict[tuple[str, ...], tuple[int, Example]] = {}  # first line and example of each prompt

    def add(self, number: int, fields: dict[str, Any]) -> None:
        """Takes the fields of a line.

        Raises:
            ValueError: its split contradicts an earlier line.
        """
        if self._explicit not in (None, "split" in fields):
            raise ValueError("either all lines have a 'split' or none; this one differs from the first")
        self._explicit = "split" in fields
        prompt, answer, split = fields.pop("prompt"), fields.pop("answer", ""), fields.pop("split", None)
        question = question_text(prompt)
        split = split or split_of(question)
        line, home = self._homes.setdefault(question, (number, split))
        if home != split:
            raise ValueError(f"the prompt of line {line}, which is in {home}, is in {split} here")
        example = Example(prompt, answer, fields)
        earlier, kept = self._first.setdefault((question, *_instructions(prompt)), (number, example))
        if earlier == number:
            self.examples[split].append(example)
            self.lines[split].append(number)
            return
        self.repeated.append((number, earlier))
        if (normalised(answer), fields) != (normalised(kept.answer), kept.meta):
            self.contradicting.append((number, earlier))

    def repetitions(self) -> str:
        """Says which lines were left out."""
        line, earlier = self.repeated[0]
        what = (
            f"lines left out, for they ask what an earlier line asks: {len(self.repeated)} (line {line} as {earlier})"
        )
        if not self.contradicting:
            return what
        line, earlier = self.contradicting[0]
        differing = f"of these with another answer or other fields: {len(self.contradicting)}"
        return f"{what}; {differing} (line {line} than {earlier})"


def _instructions(prompt: Prompt) -> list[str]:
    """Returns what a conversation says before it asks: two prompts that differ there are two examples."""
    if isinstance(prompt, str):
        return []
    return [normalised(message["content"]) for message in prompt if message["role"] == "system"]


def _fields(line: bytes) -> dict[str, Any]:
    """Returns the fields of a line.

    Raises:
        ValueError: anything wrong with it.
    """
    fields = _object(line)
    if "prompt" not in fields:
        hint = nearest("prompt", fields) if fields else "it is empty"
        raise ValueError(f"no field 'prompt'; {hint}")
    _check_prompt(fields["prompt"])
    if "answer" in fields and not isinstance(fields["answer"], str):
        raise ValueError(f"'answer' must be a text, got {_kind(fields['answer'])}")
    if "split" in fields and fields["split"] not in BaseTask.SPLITS:
        raise ValueError(f"no split {fields['split']!r}; {nearest(str(fields['split']), BaseTask.SPLITS)}")
    return fields


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode())
        broken = b"\\u" in line and has_surrogates(json.dumps(fields, ensure_ascii=False))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if broken:
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) in a text, which is no character")
    if not isinstance(fields, Mapping):
        raise ValueError(f"a line must be an object with a 'prompt', got {_kind(fields)}")
    return dict(fields)


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str | list):
        raise ValueError(f"'prompt' must be a text, got {_kind(prompt)} (a list of messages will do)")
    if not prompt:
        raise ValueError("'prompt' is empty")
    for message in prompt if isinstance(prompt, list) else ():
        whole = isinstance(message, Mapping) and set(message) == {"role", "content"}
        if not whole or not all(isinstance(text, str) for text in message.values()):
            raise ValueError("a message of 'prompt' must be an object with the texts 'role' and 'content'")
    if (fault := fault_of(prompt)) is not None:
        raise ValueError(fault)


def _kind(value: object) -> str:
    """Returns what a JSON value is called in an error."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
