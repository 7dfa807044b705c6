"""Several tasks as one, mixed with weights."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.tasks.base import BaseTask, Example, check_int, check_split, check_weights, score_many

MAX_SIZE = 10**7
"""Largest size of a split that is worked out from weights."""


@dataclass(frozen=True)
class MixedExample(Example):
    """An example of a mixture; ``source`` is the task's own, ``meta`` is its ``meta`` and the task's name."""

    source: Example = field(kw_only=True)


@register("task")
class Mixture(BaseTask):
    """Several tasks mixed with weights, each scored by itself.

    The tasks alternate as evenly as their weights allow: of the first n examples, for every n, each task has its share
    to within about one. Within a task the order is its own. A task that has no examples in a split takes no part there;
    splits stay as disjoint as those of the tasks. ``meta["task"]`` is the name of an example's task: its class, its
    dataset or its file, with a number where two would be called the same.

    Reward components: ``reward`` and ``solved`` of the task the example is from, and all its components under
    ``<task>/<component>``. An example has no components of other tasks: each is averaged over those that have it.

    Args:
        tasks: the tasks. In a recipe: ``Mixture.tasks = [@Sudoku4x4(), @Countdown()]``; two of one class need scopes,
            ``[@easy/Sudoku4x4(), @hard/Sudoku4x4()]``.
        weights: one number for each task, at least one positive; None: all equal.
        num_pretrain, num_train, num_heldout: examples of each split. Where a task has fewer than its share it starts
            again. None: in ``pretrain`` and ``train``, enough to use every example of every task, the smaller tasks
            repeating theirs; in ``heldout``, as many as there are without a repetition.

    Raises:
        ValueError: no tasks, something that is no task, weights that do not fit, or a size for a split that is empty.
    """

    def __init__(
        self,
        tasks: Sequence[Any],
        weights: Sequence[float] | None = None,
        num_pretrain: int | None = None,
        num_train: int | None = None,
        num_heldout: int | None = None,
    ) -> None:
        check(isinstance(tasks, list | tuple) and len(tasks) > 0, self, "tasks", tasks, "a list of tasks")
        for position, task in enumerate(tasks):
            is_task = not isinstance(task, type) and all(hasattr(task, name) for name in ("size", "example", "score"))
            check(is_task, self, f"tasks[{position}]", task, "a task, in a recipe @Name() with brackets")
        weights = [1.0] * len(tasks) if weights is None else weights
        fitting = isinstance(weights, list | tuple) and len(weights) == len(tasks)
        check(fitting, self, "weights", weights, f"a list of {len(tasks)} numbers, one for each task")
        check_weights(self, **{f"weights[{position}]": weight for position, weight in enumerate(weights)})
        self.tasks = dict(zip(_names(tasks), tasks, strict=True))
        self.weights = dict(zip(self.tasks, weights, strict=True))
        self._orders = {split: self._order(split) for split in self.SPLITS}
        self._sizes: dict[str, int | None] = {}
        for split, number in zip(self.SPLITS, (num_pretrain, num_train, num_heldout), strict=True):
            if number is not None:
                check_int(self, f"num_{split}", number, 0)
                taking_part = f"0: no task of positive weight has examples in {split}"
                check(number == 0 or bool(self._orders[split].shares), self, f"num_{split}", number, taking_part)
            self._sizes[split] = number

    @property
    def main_thread(self) -> bool:  # type: ignore[override]
        """Whether one of the tasks scores in the main thread only."""
        return any(getattr(task, "main_thread", False) for task in self.tasks.values())

    def size(self, split: str) -> int:
        """Number of examples of a split.

        Raises:
            ValueError: unknown split.
        """
        check_split(self, split)
        size = self._sizes[split]
        if size is None:
            order = self._orders[split]
            if split == "heldout":
                size = order.without_repetition()
            else:
                fits = order.estimate() <= MAX_SIZE
                check(fits, self, f"num_{split}", None, f"set: with these weights it would be above {MAX_SIZE}")
                size = order.complete()
            self._sizes[split] = size
        return size

    def example(self, split: str, index: SupportsIndex) -> MixedExample:
        """Example ``index`` of a split: of which task, and which one, depends on weights and sizes alone.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split, or a task cannot make its example.
        """
        position = self._position(split, index)
        number, which = self._orders[split].at(position)
        name = list(self.tasks)[number]
        task = self.tasks[name]
        source = task.example(split, which % task.size(split))
        return MixedExample(source.prompt, source.answer, {**source.meta, "task": name}, source=source)

    def canonical(self, example: Example) -> str:
        """The task's canonical text of its own example."""
        task, source = self._source(example)
        return str(task.canonical(source))

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """The score by the example's task: ``reward``, ``solved``, and each component as ``<task>/<component>``."""
        return self.score_many([completion], [example])[0]

    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores of several completions, as ``score``; each task gets all of its own at once."""
        places: dict[str, list[int]] = {}
        for place, example in enumerate(examples):
            places.setdefault(example.meta["task"], []).append(place)
        scores: list[dict[str, float]] = [{} for _ in completions]
        for name, mine in places.items():
            sources = [self._source(examples[place])[1] for place in mine]
            own_scores = score_many(self.tasks[name], [completions[place] for place in mine], sources)
            for place, score in zip(mine, own_scores, strict=True):
                own = {f"{name}/{component}": value for component, value in score.items()}
                scores[place] = {"reward": score["reward"], "solved": score["solved"], **own}
        return scores

    def _source(self, example: Example) -> tuple[Any, Example]:
        """The task of an example and its own example."""
        return self.tasks[example.meta["task"]], getattr(example, "source", example)

    def _order(self, split: str) -> _Order:
        sizes = [task.size(split) for task in self.tasks.values()]
        weights = self.weights.values()
        return _Order({n: (w, size) for n, (w, size) in enumerate(zip(weights, sizes, strict=True)) if w and size})


class _Order:
    """The order of a split's examples: example k of a task of weight w is due at (k + 1/2) / w, the earliest is next.

    Args:
        shares: number of each task that takes part -> its weight and how many examples it has.
    """

    def __init__(self, shares: dict[int, tuple[float, int]]) -> None:
        self.shares = shares
        self._tasks, self._which = array("L"), array("Q")
        self._next = dict.fromkeys(shares, 0)
        self._due = [(0.5 / weight, number) for number, (weight, _) in shares.items()]
        heapq.heapify(self._due)

    def at(self, position: int) -> tuple[int, int]:
        """Task and example at a position, counting on where the task has no more examples."""
        while len(self._tasks) <= position:
            number = self._due[0][1]
            which = self._next[number]
            self._tasks.append(number)
            self._which.append(which)
            self._next[number] = which + 1
            heapq.heapreplace(self._due, ((which + 1.5) / self.shares[number][0], number))
        return self._tasks[position], self._which[position]

    def without_repetition(self) -> int:
        """The longest beginning in which no task starts again."""
        if not self.shares:
            return 0
        position = 0
        while True:
            number, which = self.at(position)
            if which >= self.shares[number][1]:
                return position
            position += 1

    def estimate(self) -> float:
        """About how long ``complete`` is."""
        total = sum(weight for weight, _ in self.shares.values())
        return max((size * total / weight for weight, size in self.shares.values()), default=0.0)

    def complete(self) -> int:
        """The shortest beginning that has every example of every task."""
        missing, position = set(self.shares), 0
        while missing:
            number, which = self.at(position)
            if which + 1 >= self.shares[number][1]:
                missing.discard(number)
            position += 1
        return position


def _names(tasks: Sequence[Any]) -> list[str]:
    names: list[str] = []
    for task in tasks:
        label = task.label() if hasattr(task, "label") else type(task).__name__
        numbered = (f"{label}_{number}" for number in range(2, len(tasks) + 2))
        names.append(label if label not in names else next(name for name in numbered if name not in names))
    return names
