"""Several tasks as one, mixed with weights."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check, clipped, refuse_value
from dlmrl_kit.tasks.base import BaseTask, Example, check_split, question_text
from dlmrl_kit.tasks.checks import check_int, check_reward_weights

MAX_SIZE = 10**7
"""Largest size that a split gets from the weights of the tasks; a larger one must be set."""


@dataclass(frozen=True)
class MixedExample(Example):
    """An example of a mixture.

    Args:
        prompt, answer: of the task's own example.
        meta: of the task's own example, and ``"task"``, the task's name.
        source: the task's own example.
    """

    source: Example = field(kw_only=True)


@register("task")
class Mixture(BaseTask):
    """Mixes several tasks with weights; each scores its own examples.

    The tasks alternate as evenly as their weights allow: of the first n examples, for every n, each task has its share
    to within about one. Within a task the order is its own. A task that has no examples in a split takes no part there;
    ``meta["task"]`` is the name of an example's task: its ``label``, with a number where two would be called the same.

    Splits share no question, across tasks too. Tasks that list their questions are compared when the mixture is made;
    an example of any other is compared with all that the mixture has given out, and ends the run if its question is in
    another split.

    Reward components: ``reward`` and ``solved`` of the task that the example is from, and all its components under
    ``<task>/<component>``. An example has no components of other tasks: each is averaged over those that have it.

    Args:
        tasks: the tasks. In a recipe: ``Mixture.tasks = [@Sudoku4x4(), @Countdown()]``; two of one class need scopes,
            ``[@easy/Sudoku4x4(), @hard/Sudoku4x4()]``.
        weights: one number for each task, at least one positive; None: all equal.
        num_pretrain, num_train, num_heldout: examples of each split. A task that has fewer than its share starts again
            with its first. With None, ``pretrain`` and ``train`` are as long as it takes to use every example of every
            task, and ``heldout`` ends before the first repetition.

    Raises:
        ValueError: no tasks, something that is no task, weights that do not fit, a size for a split that is empty, or a
            question in two splits.
    """

    in_order = True

    def __init__(
        self,
        tasks: Sequence[BaseTask],
        weights: Sequence[float] | None = None,
        num_pretrain: int | None = None,
        num_train: int | None = None,
        num_heldout: int | None = None,
    ) -> None:
        check(isinstance(tasks, list | tuple) and len(tasks) > 0, self, "tasks", tasks, "a list of tasks")
        for position, task in enumerate(tasks):
            expected = "a task, in a recipe @Name() with brackets"
            check(isinstance(task, BaseTask), self, f"tasks[{position}]", task, expected, of=("tasks",))
        weights = [1.0] * len(tasks) if weights is None else weights
        fitting = isinstance(weights, list | tuple) and len(weights) == len(tasks)
        check(fitting, self, "weights", weights, f"a list of {len(tasks)} numbers, one for each task")
        by_position = {f"weights[{position}]": weight for position, weight in enumerate(weights)}
        check_reward_weights(self, ("weights",), **by_position)
        self.tasks = dict(zip(_names(tasks), tasks, strict=True))
        self.weights = dict(zip(self.tasks, weights, strict=True))
        self.main_thread = any(task.main_thread for task in tasks)
        self.at_hand = all(task.at_hand for task in tasks)
        self._orders = {split: self._order(split) for split in self.SPLITS}
        self._homes: dict[str, tuple[str, str]] = {}  # split and task of each question
        self._listed = self._compare_lists()
        self._sizes: dict[str, int | None] = {}
        for split, number in zip(self.SPLITS, (num_pretrain, num_train, num_heldout), strict=True):
            if number is not None:
                check_int(self, f"num_{split}", number, 0)
                taking_part = f"0: no task of positive weight has examples in {split}"
                check(number == 0 or bool(self._orders[split].shares), self, f"num_{split}", number, taking_part)
            self._sizes[split] = number

    def size(self, split: str) -> int:
        """Returns the number of examples of a split.

        Raises:
            ValueError: unknown split.
        """
        check_split(self, split)
        size = self._sizes[split]
        if size is None:
            order = self._orders[split]
            shortest, longest = order.estimates()
            fits = (shortest if split == "heldout" else longest) <= MAX_SIZE
            check(fits, self, f"num_{split}", None, f"set: with these weights it would be above {MAX_SIZE}")
            size = order.without_repetition() if split == "heldout" else order.complete()
            self._sizes[split] = size
        return size

    def example(self, split: str, index: SupportsIndex) -> MixedExample:
        """Returns example ``index`` of a split. Weights and sizes alone decide of which task it is, and which one.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split, a task cannot make its example, or its question is in another split.
        """
        position = self._position(split, index)
        number, which = self._orders[split].at(position)
        name = list(self.tasks)[number]
        task = self.tasks[name]
        source = task.example(split, which % task.size(split))
        if name not in self._listed:
            home, other = self._homes.setdefault(question_text(source.prompt), (split, name))
            if home != split:
                problem = f"Mixture: a question is in {home} of {other!r} and in {split} of {name!r}"
                raise ValueError(f"{problem}: {clipped(repr(source.prompt))}; leave one of the two tasks out")
        meta = {**source.meta, "task": name}
        return MixedExample(source.prompt, source.answer, meta, source.prefix, source.most, source=source)

    def place(self, split: str, index: int) -> str:
        """Returns where the task has its own example."""
        number, which = self._orders[split].at(index)
        task = list(self.tasks.values())[number]
        return task.place(split, which % task.size(split))

    def canonical(self, example: Example) -> str:
        """Returns the task's canonical text of its own example."""
        task, source = self._source(example)
        return task.canonical(source)

    def questions(self, split: str) -> set[str] | None:
        """Returns what the examples of a split ask, if all its tasks list their questions."""
        found = [task.questions(split) for name, task in self.tasks.items() if self.weights[name]]
        listed = [questions for questions in found if questions is not None]
        return set().union(*listed) if len(listed) == len(found) else None

    def notes(self) -> list[str]:
        """Returns the notes of its tasks, each with the task's name."""
        return [f"{name}: {note}" for name, task in self.tasks.items() for note in task.notes()]

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Asks the example's task; returns ``reward``, ``solved``, and each component as ``<task>/<component>``."""
        return self.score_many([completion], [example])[0]

    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores several completions, as ``score``; each task gets all of its own at once."""
        places: dict[str, list[int]] = {}
        for place, example in enumerate(examples):
            places.setdefault(example.meta["task"], []).append(place)
        scores: list[dict[str, float]] = [{} for _ in completions]
        for name, mine in places.items():
            sources = [self._source(examples[place])[1] for place in mine]
            own_scores = self.tasks[name].score_many([completions[place] for place in mine], sources)
            for place, score in zip(mine, own_scores, strict=True):
                own = {f"{name}/{component}": value for component, value in score.items()}
                scores[place] = {"reward": score["reward"], "solved": score["solved"], **own}
        return scores

    def _source(self, example: Example) -> tuple[BaseTask, Example]:
        """Returns the task of an example and its own example."""
        source = example.source if isinstance(example, MixedExample) else example
        return self.tasks[example.meta["task"]], source

    def _compare_lists(self) -> set[str]:
        """Returns the names of the tasks that list their questions, once it has seen that no split shares one.

        Raises:
            ValueError: a question is in two splits.
        """
        listed: set[str] = set()
        shared: list[tuple[str, tuple[str, str], tuple[str, str]]] = []
        for split in self.SPLITS:
            for name, task in self.tasks.items():
                questions = task.questions(split) if self.weights[name] else None
                if questions is None:
                    continue
                listed.add(name)
                for question in questions:
                    home = self._homes.setdefault(question, (split, name))
                    if home[0] != split:
                        shared.append((question, home, (split, name)))
        if shared:
            question, home, other = min(shared)
            both = f"{home[0]} of {home[1]!r} and in {other[0]} of {other[1]!r}"
            hint = "give it the same 'split' in both files, or leave 'split' out of both"
            what = f"share questions between splits, {len(shared)} of them; {clipped(repr(question))}"
            refuse_value(self, "tasks", f"{what} is in {both}: {hint}")
        return listed

    def _order(self, split: str) -> _Order:
        sizes = [task.size(split) for task in self.tasks.values()]
        weights = self.weights.values()
        return _Order({n: (w, size) for n, (w, size) in enumerate(zip(weights, sizes, strict=True)) if w and size})


class _Order:
    """The order of a split's examples: example k of a task of weight w is due at (k + 1/2) / w, the earliest is next.

    Tasks have numbers here.

    Args:
        shares: weight and number of examples of each task that takes part, by the task's number.
    """

    def __init__(self, shares: dict[int, tuple[float, int]]) -> None:
        self.shares = shares
        self._tasks, self._which = array("L"), array("Q")
        self._next = dict.fromkeys(shares, 0)
        self._due = [(0.5 / weight, number) for number, (weight, _) in shares.items()]
        heapq.heapify(self._due)

    def at(self, position: int) -> tuple[int, int]:
        """Returns the task at a position and which of its examples stands there, counting on where it has no more."""
        while len(self._tasks) <= position:
            number = self._due[0][1]
            which = self._next[number]
            self._tasks.append(number)
            self._which.append(which)
            self._next[number] = which + 1
            heapq.heapreplace(self._due, ((which + 1.5) / self.shares[number][0], number))
        return self._tasks[position], self._which[position]

    def without_repetition(self) -> int:
        """Returns the length of the longest beginning in which no task starts again."""
        if not self.shares:
            return 0
        position = 0
        while True:
            number, which = self.at(position)
            if which >= self.shares[number][1]:
                return position
            position += 1

    def estimates(self) -> tuple[float, float]:
        """About what ``without_repetition`` and ``complete`` return, without going through the order."""
        total = sum(weight for weight, _ in self.shares.values())
        lengths = [size * total / weight for weight, size in self.shares.values()] or [0.0]
        return min(lengths), max(lengths)

    def complete(self) -> int:
        """Returns the length of the shortest beginning that has every example of every task."""
        missing, position = set(self.shares), 0
        while missing:
            number, which = self.at(position)
            if which + 1 >= self.shares[number][1]:
                missing.discard(number)
            position += 1
        return position


def _names(tasks: Sequence[BaseTask]) -> list[str]:
    """Returns the labels of the tasks, with a number behind those that occurred before."""
    names: list[str] = []
    for task in tasks:
        label = task.label()
        numbered = (f"{label}_{number}" for number in range(2, len(tasks) + 2))
        names.append(label if label not in names else next(name for name in numbered if name not in names))
    return names
