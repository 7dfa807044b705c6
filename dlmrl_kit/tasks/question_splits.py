"""Questions of a data set, divided into splits: repetitions left out, questions of training and test set compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.tasks.base import normalised
from dlmrl_kit.tasks.rows import Origin, Row, Rows


@dataclass(frozen=True)
class Question:
    """What a row asks.

    Args:
        text: the question, without instruction.
        meta: what rewards need of it; it becomes the example's ``meta``.
        answer: the final answer; "" where the data has none.
        reasoning: the way to it; "" where the data has none.
        key: equal for questions that count as the same one; "": the text.
    """

    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    reasoning: str = ""
    key: str = ""

    @property
    def same(self) -> str:
        """What is equal for questions that count as the same one."""
        return self.key or normalised(self.text)


@dataclass(frozen=True)
class Placed:
    """A question, and where its row is to be found."""

    question: Question
    origin: Origin
    number: int

    @property
    def place(self) -> str:
        """The file and line, or the data set and row."""
        return self.origin.place(self.number)


@dataclass(frozen=True)
class Splits:
    """The questions of each split.

    Attributes:
        questions: by split.
        origins: where the training set and, if it is another one, the test set were read.
        notes: in words, what was left out.
    """

    questions: dict[str, list[Placed]]
    origins: list[Origin]
    notes: list[str]


def read_questions(rows: Rows, question: Callable[[Row], Question | None]) -> tuple[list[Placed], int]:
    """Returns the questions of rows, each once, and how many rows repeat one.

    Args:
        rows: of a data set.
        question: makes a question of a row; None of a row that is to be skipped.

    Raises:
        RecipeError: a row is not as it should be, with its place, or no row is left.
    """
    found: dict[str, Placed] = {}
    repeated = 0
    for number, row in enumerate(rows.rows):
        try:
            made = question(row)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{rows.origin.place(number)}: {error}") from error
        except KeyError as error:
            known = ", ".join(map(repr, row))
            raise RecipeError(f"{rows.origin.place(number)}: there is no field {error}; it has {known}") from error
        if made is not None:
            repeated += made.same in found
            found.setdefault(made.same, Placed(made, rows.origin, number))
    if not found:
        raise RecipeError(f"{rows.origin.source} has no examples")
    return list(found.values()), repeated


def make_splits(
    sets: Sequence[Rows],
    question: Callable[[Row], Question | None],
    *,
    holdout: int,
    keep_shared: bool,
    num_pretrain: int,
    most: tuple[int | None, int | None],
) -> Splits:
    """Divides a training and a test set, or one set for both, into the splits of a task.

    Args:
        sets: the training set and, if it is another one, the test set.
        question: as ``read_questions``.
        holdout: questions at the end of the only set that become the test set; at most half of it.
        keep_shared: whether questions of both sets stay in the training set.
        num_pretrain: questions at the end of the training set that are the split ``pretrain``.
        most: the most questions of ``train`` and ``heldout``, from the first; None: all.

    Raises:
        RecipeError: as ``read_questions``, or ``num_pretrain`` leaves nothing to train on.
    """
    notes: list[str] = []
    (train, repeated), *other = [read_questions(rows, question) for rows in sets]
    test, repeated_there = other[0] if other else _parted(train, min(holdout, len(train) // 2), repeated)
    if not other:
        train = train[: len(train) - len(test)]
    for count, what in ((repeated, "training"), (repeated_there if other else 0, "test")):
        if count:
            notes.append(f"{count} rows of the {what} set repeat a question and are left out")
    known = {placed.question.same for placed in test}
    shared = sum(placed.question.same in known for placed in train)
    if shared:
        kept = "they stay in both" if keep_shared else "they are left out of the training set"
        notes.append(f"{shared} questions are in the training set and in the test set: {kept}")
    if not keep_shared:
        train = [placed for placed in train if placed.question.same not in known]
    if num_pretrain and num_pretrain >= len(train):
        raise RecipeError(f"num_pretrain = {num_pretrain} leaves nothing of the {len(train)} training examples")
    at = len(train) - num_pretrain
    questions = {"pretrain": train[at:], "train": train[:at][: most[0]], "heldout": test[: most[1]]}
    return Splits(questions, [rows.origin for rows in sets], notes)


def _parted(found: list[Placed], number: int, repeated: int) -> tuple[list[Placed], int]:
    return found[len(found) - number :], repeated
