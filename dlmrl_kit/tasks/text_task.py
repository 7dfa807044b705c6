"""``TextTask``: questions of a data set, asked in words, with published splits and a reward of named parts.

A subclass says how a row becomes a ``Question``. ``TextTask`` reads the rows when they are first needed, counts the
questions that training and test set share, lays out the prompts, and adds up the rewards.
"""

from __future__ import annotations

import copy
import hashlib
import json
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal, SupportsIndex

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.validate import check, refuse_value
from dlmrl_kit.prompts.base import PromptLayout
from dlmrl_kit.prompts.chat_prompt import ChatPrompt
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.tasks.base import BaseTask, Example, check_split
from dlmrl_kit.tasks.checks import check_int
from dlmrl_kit.tasks.data_task import DataTask
from dlmrl_kit.tasks.question_splits import Placed, Question, Splits, make_splits
from dlmrl_kit.tasks.rows import Origin, Row, Rows, Source, read_rows


class TextTask(DataTask):
    """Base class of tasks whose questions come from a data set.

    The training set is the split ``train``, the test set is ``heldout``. Rows are read when they are first needed, not
    before: a recipe can be checked without them. A row that repeats a question is left out, and a run says how many
    were; questions that both sets have are counted, and left out of the training set.

    Args:
        data, config, split, revision, test_data, test_revision, holdout: as ``DataTask``.
        test_split: as ``DataTask``; None takes the end of ``data``.
        shared: what happens to questions of the test set that the training set has, too: ``drop`` leaves them out of
            the training set, ``keep`` does not. They are counted either way.
        num_pretrain: how many rows, the last of the training set, are set apart as the split ``pretrain``: for
            pre-training, or to choose a checkpoint on.
        num_train, num_heldout: the most examples of these splits, from the first; None: all.
        prompt: lays out the prompts; None: ``ChatPrompt``.
        test_prompt: lays out those of ``heldout``, if otherwise; None: as ``prompt``.
        rewards: what completions earn; None: those that the task is published with.
        combine: the reward is the ``sum`` of weight times value, or their ``mean`` (the sum over the sum of weights).

    Raises:
        ValueError: a parameter out of its range, two rewards of one name, or weights that have no mean.
    """

    sample: ClassVar[tuple[Row, ...]] = ()
    """Rows written for the kit, in the form of the data set, which stand for it where it must not be downloaded."""

    @with_parameters_of(DataTask)
    def __init__(
        self,
        data: str,
        test_split: str | None = "test",
        shared: Literal["drop", "keep"] = "drop",
        num_pretrain: int = 0,
        num_train: int | None = None,
        num_heldout: int | None = None,
        prompt: PromptLayout | None = None,
        test_prompt: PromptLayout | None = None,
        rewards: Sequence[RewardFunction] | None = None,
        combine: Literal["sum", "mean"] = "sum",
        **others: Any,
    ) -> None:
        super().__init__(data=data, test_split=test_split, **others)
        sizes = {"num_pretrain": num_pretrain, "num_train": num_train, "num_heldout": num_heldout}
        for name, number in sizes.items():
            if number is not None:
                check_int(self, name, number, 0)
        check(shared in ("drop", "keep"), self, "shared", shared, "drop or keep")
        check(combine in ("sum", "mean"), self, "combine", combine, "sum or mean")
        for name, layout in (("prompt", prompt), ("test_prompt", test_prompt)):
            check(layout is None or isinstance(layout, PromptLayout), self, name, layout, "a prompt layout")
        self.shared, self.combine = shared, combine
        self.num_pretrain, self.num_train, self.num_heldout = num_pretrain, num_train, num_heldout
        self.prompt = ChatPrompt() if prompt is None else prompt
        self.test_prompt = test_prompt
        self.rewards = self._checked(self.published_rewards() if rewards is None else list(rewards))

    # ------------------------------------------------------------ what a subclass says

    @abstractmethod
    def question(self, row: Row) -> Question | None:
        """Returns what a row of the data set asks; None if it is none of the task's.

        Raises:
            ValueError: the row is not as published; says what is wrong, and need not say where.
        """

    @abstractmethod
    def published_rewards(self) -> list[RewardFunction]:
        """Returns the rewards that the task is published with, one at least of which ``decides``."""

    def instruction(self) -> str:
        """Returns what the model is told to do, in the kit's own words. Default: only the form of the answer."""
        return FORM

    def written(self, question: Question) -> str:
        """Returns a right answer to a question as a model should write it. Default: reasoning and answer in tags."""
        return f"<reasoning>\n{question.reasoning}\n</reasoning>\n<answer>\n{question.answer}\n</answer>\n"

    # ------------------------------------------------------------ examples

    def origins(self) -> Sequence[Origin]:
        """Returns where training and test set were read."""
        return self._splits.origins

    def left_out(self) -> Sequence[str]:
        """Returns how many rows repeat a question, and how many questions both sets have."""
        return self._splits.notes

    def versions(self) -> dict[str, str]:
        """Returns the commits of the hub's data sets that the examples are from, and the digests of the prompts."""
        name, found = type(self).__name__, super().versions()
        for of, layout in (("", self.prompt), (" in heldout", self.test_prompt)):
            if layout is not None:
                wording = [layout.prompt(self.instruction(), "?"), layout.prefix, layout.max_tokens]
                found[f"{name} prompt{of}"] = hashlib.sha256(json.dumps(wording).encode()).hexdigest()
        return found

    def size(self, split: str) -> int:
        """Returns the number of examples of a split.

        Raises:
            ValueError: unknown split.
            UserError: the data cannot be read.
        """
        check_split(self, split)
        return len(self._splits.questions[split])

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Returns example ``index`` of a split, in the order of the data set.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split.
        """
        position = self._position(split, index)
        question = self._splits.questions[split][position].question
        layout = self.test_prompt if self.test_prompt is not None and split == "heldout" else self.prompt
        prompt = layout.prompt(self.instruction(), question.text)
        answer = self.written(question).removeprefix(layout.prefix) if question.answer else ""
        return Example(prompt, answer, dict(question.meta), layout.prefix, layout.max_tokens)

    def place(self, split: str, index: int) -> str:
        """Returns the file and line, or the data set and row, of an example."""
        return self._splits.questions[split][index].place

    def questions(self, split: str) -> Collection[str]:
        """Returns what the examples of a split ask, without instructions.

        Raises:
            ValueError: unknown split.
        """
        check_split(self, split)
        return {placed.question.same for placed in self._splits.questions[split]}

    def canonical(self, example: Example) -> str:
        """Returns the question without instruction."""
        return str(example.meta["question"])

    def metrics(self) -> dict[str, str]:
        """Returns the accuracy, and what of the rewards is ``reported`` beside it."""
        return {**super().metrics(), **{reward.label: reward.reported for reward in self.rewards if reward.reported}}

    def sketch(self) -> BaseTask:
        """Returns the task itself if its data are files here, else one like it with the kit's own few rows."""
        if all(source.local is not None for source in self.sources()) or not self.sample:
            return self
        twin = copy.copy(self)
        rows = Rows(list(self.sample), Origin(Source("the kit's own rows")))
        twin._splits = self._made((rows, rows), keep_shared=True)
        return twin

    # ------------------------------------------------------------ rewards

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Returns the value of each reward by its name, their sum or mean as ``reward``, and ``solved``."""
        return self.score_many([completion], [example])[0]

    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores several completions, as ``score``."""
        texts = [
            example.prefix + completion if isinstance(completion, str) else ""
            for completion, example in zip(completions, examples, strict=True)
        ]
        metas = [example.meta for example in examples]
        values = {reward.label: reward.values(texts, metas) for reward in self.rewards}
        solved = values[self._judge.label] if self._judge in self.rewards else self._judge.values(texts, metas)
        over = sum(reward.weight for reward in self.rewards) if self.combine == "mean" else 1.0
        scores = []
        for number, right in enumerate(solved):
            own = {name: float(found[number]) for name, found in values.items()}
            total = sum(reward.weight * own[reward.label] for reward in self.rewards) / over
            scores.append({**own, "reward": total, "solved": float(right == 1)})
        return scores

    @cached_property
    def _judge(self) -> RewardFunction:
        """The reward that decides whether an example is solved: the first that can, else the published one."""
        return next(reward for reward in (*self.rewards, *self.published_rewards()) if reward.decides)

    def _checked(self, rewards: list[RewardFunction]) -> list[RewardFunction]:
        for position, reward in enumerate(rewards):
            expected = "a reward, in a recipe @Name() with brackets"
            check(isinstance(reward, RewardFunction), self, f"rewards[{position}]", reward, expected, of=("rewards",))
        check(bool(rewards), self, "rewards", rewards, "a list of at least one reward")
        labels = [reward.label for reward in rewards]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            refuse_value(self, "rewards", f"two are called {twice!r}: give one of them another name")
        total = sum(reward.weight for reward in rewards)
        positive = self.combine == "sum" or total > 0
        check(positive, self, "sum of weights", total, "positive for a mean", of=("rewards", "combine"))
        return rewards

    # ------------------------------------------------------------ reading

    @cached_property
    def _splits(self) -> Splits:
        """The questions of each split, read when they are first needed."""
        for reward in (*self.rewards, self._judge):
            reward.require()
        return self._made([read_rows(source) for source in self.sources()], keep_shared=self.shared == "keep")

    def _made(self, sets: Sequence[Rows], keep_shared: bool) -> Splits:
        """Divides the rows of a training and a test set; checks that rewards find what they need."""
        splits = make_splits(
            sets,
            self._asked,
            holdout=self.holdout,
            keep_shared=keep_shared,
            num_pretrain=self.num_pretrain,
            most=(self.num_train, self.num_heldout),
        )
        for reward in (*self.rewards, self._judge):
            self._check_needs(reward, splits.questions["train"])
        return splits

    def _asked(self, row: Row) -> Question | None:
        """Returns what a row asks, with the question among what the example tells."""
        made = self.question(row)
        return None if made is None else replace(made, meta={**made.meta, "question": made.same})

    def _check_needs(self, reward: RewardFunction, train: Sequence[Placed]) -> None:
        """Refuses a reward that reads what the examples do not have."""
        known = train[0].question.meta if train else dict.fromkeys(reward.needs)
        for name in reward.needs:
            if name not in known:
                raise RecipeError(
                    f"{type(reward).__name__} reads {name!r} of an example, but those of {type(self).__name__} have "
                    f"{', '.join(known)}: take another reward"
                )


FORM = (
    "Think first, between <reasoning> and </reasoning>. Then give the final answer, and nothing else, between <answer> "
    "and </answer>, with each tag on a line of its own."
)
"""How an answer is written, in the kit's own words."""
