"""Which fields of a row are its prompt, its answer and its split, where rows do not use the kit's own names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dlmrl_kit.core.registry import nearest
from dlmrl_kit.core.validate import check
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.tasks.rows import Row

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True)
class Fields:
    """Says what a row's fields are.

    Args:
        prompt, answer, split: names of the fields.
        template: a text with ``{field}`` for fields of the row, which is the prompt instead; ``{{`` is a brace.
        splits: the kit's split for each value of the field ``split``, None for rows that are left out; None: the values
            are the kit's splits.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    split: str = "split"
    template: str | None = None
    splits: Mapping[str, str | None] | None = None

    def check(self, task: BaseTask, **names: str) -> None:
        """Refuses names, a template and splits that cannot be meant; for the constructor of a task.

        Args:
            task: whose parameters ``template`` and ``splits`` are.
            names: of fields, by the task's parameters.

        Raises:
            ValueError: one of them.
        """
        for parameter, name in names.items():
            check(isinstance(name, str) and bool(name), task, parameter, name, "the name of a field")
        if self.template is not None:
            good = isinstance(self.template, str) and any(self.named())
            check(good, task, "template", self.template, "a text with {field} in it")
            hidden = self.answer not in self.named()
            check(hidden, task, "template", self.template, f"without {{{self.answer}}}, which would show the answer")
        if self.splits is not None:
            homes = self.splits.values() if isinstance(self.splits, Mapping) else [""]
            good = all(home is None or home in task.SPLITS for home in homes)
            known = ", ".join(task.SPLITS)
            check(good, task, "splits", self.splits, f"a dict from values of the field to {known} or None")

    def named(self) -> list[str]:
        """Returns the fields that the template names."""
        return [name for name in _FIELD.findall(self.template or "") if name]

    def mapped(self, row: Row) -> Row | None:
        """Returns a row with ``prompt``, ``answer`` (a text) and ``split`` under these names; None if it is left out.

        An answer that is no text becomes one, as JSON, and its value stays among the other fields.

        Raises:
            ValueError: a field is missing, or the split is unknown.
        """
        fields = dict(row)
        if self.template is not None:
            prompt: Any = filled(self.template, row)
        elif self.prompt in fields:
            prompt = fields.pop(self.prompt)
        else:
            raise ValueError(f"no field {self.prompt!r}; {nearest(self.prompt, fields) if fields else 'it is empty'}")
        found = {"prompt": prompt}
        if self.answer in fields:
            answer = fields.pop(self.answer)
            found["answer"] = as_text(answer)
            fields |= {} if isinstance(answer, str | None) else {self.answer: answer}
        elif self.answer != Fields.answer:
            raise ValueError(f"no field {self.answer!r}; {nearest(self.answer, fields)}")
        if self.split in fields:
            found["split"] = self._home(fields.pop(self.split))
            if found["split"] is None:
                return None
        return {**fields, **found}

    def _home(self, value: object) -> str | None:
        if self.splits is None:
            known: list[str] = list(BaseTask.SPLITS)
            home = value if isinstance(value, str) and value in known else None
        else:
            known = list(self.splits)
            home = self.splits.get(value) if isinstance(value, str) else None
        if home is None and value not in known:
            raise ValueError(f"no split {value!r}; {nearest(str(value), known)}")
        return home


def filled(template: str, row: Row) -> str:
    """Returns a template with the values of a row's fields, texts as they are and all others as JSON.

    Raises:
        ValueError: the row lacks a field.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in row:
            raise ValueError(f"the template needs the field {name!r}; {nearest(name, row)}")
        return as_text(row[name])

    return _FIELD.sub(value, template)


def as_text(value: object) -> str:
    """Returns a text as it is, "" for None, and any other value as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
