"""Your own questions and answers, with the kit's prompts and rewards."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.correct_answer import CorrectAnswer
from dlmrl_kit.rewards.tag_count import TagCount
from dlmrl_kit.tasks.fields import Fields
from dlmrl_kit.tasks.question_splits import Question
from dlmrl_kit.tasks.rows import Row
from dlmrl_kit.tasks.text_task import TextTask


@register("task")
class Questions(TextTask):
    """Your own questions and answers from a file or a data set, asked in words, with the kit's rewards.

    By default the reward is 1 for the right answer and, with tags, up to 0.5 for its form. A reward of your own needs a
    function: ``JsonLines``. ``meta`` has ``truth``, the answer as a text, and all fields of the row.

    Args:
        data: as in ``TextTask``; it has no default.
        question_field, answer_field: what these are called in the data. An answer that is no text becomes one, as JSON.
        reasoning_field: a worked solution, for pre-training on answers; None: there is none.
        template: a text with ``{field}`` for fields of a row, which is the question instead of ``question_field``;
            ``{{`` is a brace.
        tags: whether the model is to write reasoning and answer between tags; if not, the answer alone.

    Other arguments, raises as ``TextTask``.
    """

    @with_parameters_of(TextTask)
    def __init__(
        self,
        data: str,
        test_split: str | None = None,
        question_field: str = "question",
        answer_field: str = "answer",
        reasoning_field: str | None = None,
        template: str | None = None,
        tags: bool = True,
        **others: Any,
    ) -> None:
        self.question_field, self.answer_field = question_field, answer_field
        self.reasoning_field, self.template = reasoning_field, template
        self.tags = tags
        self._fields = Fields(question_field, answer_field, "", template)
        self._fields.check(self, question_field=question_field, answer_field=answer_field)
        super().__init__(data=data, test_split=test_split, **others)

    def question(self, row: Row) -> Question:
        """Returns the question, its answer and the worked solution."""
        fields = self._fields.mapped(row) or {}
        answer = str(fields.get("answer", "")).strip()
        if not answer:
            raise ValueError(f"no answer in {self.answer_field!r}")
        if not isinstance(fields["prompt"], str) or not fields["prompt"].strip():
            raise ValueError(f"{self.question_field!r} must be a text that is not empty")
        reasoning = "" if self.reasoning_field is None else str(row[self.reasoning_field]).strip()
        return Question(fields["prompt"].strip(), {**row, "truth": answer}, answer, reasoning)

    def published_rewards(self) -> list[RewardFunction]:
        """Returns right answer and tags, or the right answer alone."""
        return [CorrectAnswer(), TagCount()] if self.tags else [CorrectAnswer(answer_in="text")]

    def instruction(self) -> str:
        """Returns the form of the answer; nothing without tags."""
        return f"Answer the question. {super().instruction()}" if self.tags else ""

    def written(self, question: Question) -> str:
        """Returns reasoning and answer in tags, or the answer alone."""
        return super().written(question) if self.tags else question.answer
