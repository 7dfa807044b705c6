"""MATH: problems of competitions, arXiv 2103.03874, with the 500 of MATH-500 (arXiv 2305.20050) as the test set."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.boxed_answer import BoxedAnswer
from dlmrl_kit.rewards.correct_answer import CorrectAnswer
from dlmrl_kit.rewards.tags import in_box
from dlmrl_kit.tasks.question_splits import Question
from dlmrl_kit.tasks.rows import Row
from dlmrl_kit.tasks.text_task import TextTask


@register("task", paper="arXiv 2103.03874; arXiv 2305.20050; arXiv 2603.12554")
class MATH(TextTask):
    r"""Problems of mathematics competitions: trained on 12,000 of MATH, tested on MATH-500.

    A row has ``problem`` and ``solution``, whose last ``\boxed{}`` is the answer, or ``answer`` itself. By default the
    reward is that of d1 and EGSPO: a box in the answer 1 at most, the right answer 2. ``meta["truth"]`` is the answer.

    Arguments, raises as ``TextTask``.
    """

    sample = (
        {
            "problem": "What is the sum of the solutions of $x^2 - 7x + 12 = 0$?",
            "solution": "The polynomial is $(x - 3)(x - 4)$, and $3 + 4 = 7$, so the sum is $\\boxed{7}$.",
        },
        {
            "problem": "Two fair dice are thrown. What is the probability that their sum is 9?",
            "solution": "Of 36 throws, 4 have the sum 9: $\\frac{4}{36} = \\boxed{\\frac{1}{9}}$.",
        },
        {
            "problem": "For which real numbers $x$ is $|x - 2| < 3$?",
            "solution": "They are less than 3 away from 2: $x \\in \\boxed{(-1, 5)}$.",
        },
    )

    pinned = {"HuggingFaceH4/MATH-500": "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"}

    @with_parameters_of(TextTask)
    def __init__(
        self,
        data: str = "ankner/math-500",
        test_data: str | None = "HuggingFaceH4/MATH-500",
        **others: Any,
    ) -> None:
        super().__init__(data=data, test_data=test_data, **others)

    def question(self, row: Row) -> Question:
        """Returns the problem, its answer and the solution."""
        solution = str(row.get("solution") or "")
        answer = str(row.get("answer") or in_box(solution) or "")
        if not answer:
            raise ValueError("there is neither an 'answer' nor a \\boxed{} in 'solution'")
        return Question(str(row["problem"]).strip(), {"truth": answer}, f"\\boxed{{{answer}}}", solution.strip())

    def published_rewards(self) -> list[RewardFunction]:
        """Returns box and right answer."""
        return [BoxedAnswer(), CorrectAnswer(2.0)]

    def instruction(self) -> str:
        r"""Returns the form of the answer, which stands in a ``\boxed{}``."""
        return f"Solve the problem. {super().instruction()} Write the final answer as \\boxed{{...}}."
