"""GSM8K: word problems of grade school, arXiv 2110.14168."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.rewards.answer_format import SoftFormat, StrictFormat
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.correct_answer import CorrectAnswer
from dlmrl_kit.rewards.integer_answer import IntegerAnswer
from dlmrl_kit.rewards.tag_count import TagCount
from dlmrl_kit.tasks.question_splits import Question
from dlmrl_kit.tasks.rows import Row
from dlmrl_kit.tasks.text_task import TextTask


@register("task", paper="arXiv 2110.14168; arXiv 2603.12554")
class GSM8K(TextTask):
    """Word problems of grade school, with the published training set and test set (7,473 and 1,319 problems).

    A row has ``question`` and ``answer``: reasoning, ``####``, a number. By default the reward is that of d1 and EGSPO:
    tags 0.5 at most, soft and strict form 0.5 each, a whole number 0.5, the right answer 2. ``meta["truth"]`` is the
    number.

    Arguments, raises as ``TextTask``.
    """

    sample = (
        {
            "question": "A shelf holds 6 boxes with 12 pencils each. 15 pencils are taken away. How many are left?",
            "answer": "There are 6 * 12 = 72 pencils at first.\n72 - 15 = 57 are left.\n#### 57",
        },
        {
            "question": "Mia walks 3 km to school and back again, 5 days a week. How many km does she walk in 4 weeks?",
            "answer": "She walks 2 * 3 = 6 km a day and 5 * 6 = 30 km a week.\n4 * 30 = 120.\n#### 120",
        },
        {
            "question": "A ticket costs 8 dollars, for children half as much. What do 2 adults and 3 children pay?",
            "answer": "Children pay 8 / 2 = 4 dollars.\n2 * 8 + 3 * 4 = 28.\n#### 28",
        },
    )

    pinned = {"openai/gsm8k": "740312add88f781978c0658806c59bc2815b9866"}

    @with_parameters_of(TextTask)
    def __init__(
        self,
        data: str = "openai/gsm8k",
        config: str | None = "main",
        **others: Any,
    ) -> None:
        super().__init__(data=data, config=config, **others)

    def question(self, row: Row) -> Question:
        """Returns the problem, its number and the reasoning before it, without the marks of a calculator."""
        reasoning, mark, number = str(row["answer"]).rpartition("####")
        if not mark or not number.strip():
            raise ValueError("'answer' does not end with #### and a number")
        number = number.strip().replace(",", "")
        return Question(str(row["question"]).strip(), {"truth": number}, number, _unmarked(reasoning).strip())

    def published_rewards(self) -> list[RewardFunction]:
        """Returns tags, forms, whole number and right answer."""
        return [TagCount(), SoftFormat(0.5), StrictFormat(0.5), IntegerAnswer(0.5), CorrectAnswer(2.0)]

    def instruction(self) -> str:
        """Returns the form of the answer, which is one number."""
        return f"Solve the problem. {super().instruction()} The final answer is one number, without a unit."


def _unmarked(text: str) -> str:
    """Returns a text without its calculator marks, ``<<6*12=72>>``."""
    parts = text.split("<<")
    return parts[0] + "".join(part.partition(">>")[2] for part in parts[1:])
