"""Countdown in words: reach a target with 3 to 4 given numbers, from published data."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.countdown_value import CountdownValue
from dlmrl_kit.tasks.checks import check_int
from dlmrl_kit.tasks.question_splits import Question
from dlmrl_kit.tasks.rows import Row
from dlmrl_kit.tasks.text_task import TextTask


@register("task", paper="arXiv 2504.12216; arXiv 2603.12554")
class CountdownNumbers(TextTask):
    """Countdown as the papers ask it: in words, with reasoning, on published numbers.

    A row of the hub's data set has ``nums`` and ``target``; one of the published test file (JSON Lines) has ``input``,
    ``"30,100,93"``, and ``output``, ``"23"``. Without ``test_data`` the last 500 rows are the test set. Numbers in
    another order are the same question. By default the reward is that of d1 and EGSPO: 1 for a right expression in
    ``<answer>``, 0.1 for a wrong one, else 0. ``meta`` has ``numbers`` and ``target``.

    ``Countdown`` is the kit's own, smaller task without words.

    Args:
        min_numbers, max_numbers: rows with fewer or more numbers are skipped. The papers take 3.

    Other arguments, raises as ``TextTask``.
    """

    sample = (
        {"nums": [2, 5, 9], "target": 19},
        {"nums": [44, 19, 35], "target": 60},
        {"nums": [3, 8, 7], "target": 31},
    )

    @with_parameters_of(TextTask)
    def __init__(
        self,
        data: str = "Jiayi-Pan/Countdown-Tasks-3to4",
        test_split: str | None = None,
        min_numbers: int = 3,
        max_numbers: int = 3,
        **others: Any,
    ) -> None:
        check_int(self, "max_numbers", max_numbers, 2, 8)
        check_int(self, "min_numbers", min_numbers, 2, max_numbers)
        self.min_numbers, self.max_numbers = min_numbers, max_numbers
        super().__init__(data=data, test_split=test_split, **others)

    def question(self, row: Row) -> Question | None:
        """Returns what to reach with which numbers; None for another count of numbers."""
        numbers, target = (row["input"].split(","), row["output"]) if "input" in row else (row["nums"], row["target"])
        numbers, target = [int(number) for number in numbers], int(target)
        if min([*numbers, target]) < 0:
            raise ValueError(f"the numbers {numbers} and the target {target} must not be negative")
        if not self.min_numbers <= len(numbers) <= self.max_numbers:
            return None
        text = f"Numbers: {', '.join(map(str, numbers))}\nTarget: {target}"
        key = f"{' '.join(map(str, sorted(numbers)))} = {target}"
        return Question(text, {"numbers": numbers, "target": target}, key=key)

    def published_rewards(self) -> list[RewardFunction]:
        """Returns the value of the expression."""
        return [CountdownValue()]

    def instruction(self) -> str:
        """Returns what to do with the numbers, and the form of the answer."""
        return (
            "Write an arithmetic expression that equals the target. Use each of the numbers exactly once and no other, "
            f"with +, -, * and /, and brackets where needed. {super().instruction()} The final answer is the "
            "expression alone, without an equals sign. For the numbers 2, 3, 4 and the target 10, 2 * 3 + 4 is one."
        )
