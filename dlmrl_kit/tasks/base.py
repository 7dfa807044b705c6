"""The base classes of tasks: a stream of puzzles divided into disjoint splits, and a verifiable reward.

A subclass of ``Task`` implements ``candidate`` (the n-th puzzle of an endless stream) and ``score``; splits,
duplicates, caching and the bound on attempts are dealt with here. ``BaseTask`` is the interface alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsIndex, TypeAlias

from dlmrl_kit.core.validate import check

Prompt: TypeAlias = str | list[dict[str, str]]
"""A text, or a conversation: messages with ``role`` and ``content``, formatted with the tokenizer's chat template."""


@dataclass(frozen=True)
class Example:
    """A puzzle: what a policy is given, one right completion, and whatever else the task wants to tell about it.

    Args:
        prompt: a ``Prompt``; typed loosely, since most tasks know that theirs are texts.
        answer: a right completion.
        meta: anything else.
    """

    prompt: Any
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


class BaseTask(ABC):
    """Puzzles in three splits and a reward for completions: what the kit asks of a task.

    Most tasks inherit from ``Task``, which makes disjoint splits out of a stream of puzzles.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ("pretrain", "train", "heldout")

    main_thread: bool = False
    """Whether it scores in the main thread only, as scorers do that set signals. Others are called from a thread beside
    the model, so that both work at the same time; never from two threads at once."""

    def label(self) -> str:
        """What the task is called in metrics. Default: the class name."""
        return type(self).__name__

    @abstractmethod
    def size(self, split: str) -> int:
        """Number of examples of a split.

        Raises:
            ValueError: unknown split.
        """

    @abstractmethod
    def example(self, split: str, index: SupportsIndex) -> Example:
        """Example ``index`` of a split; the same one whenever it is asked for.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split.
        """

    @abstractmethod
    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Reward components of a completion, each in [0, 1].

        Always has ``"reward"`` (what training maximises) and ``"solved"`` (1.0 if exactly right, else 0.0; accuracy is
        its mean). Never raises and takes bounded time, whatever ``completion`` is. A component is averaged over the
        samples that have it (``component_means``).
        """

    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores of several completions, each of the example at its position. Default: one call of ``score`` each."""
        return [self.score(completion, example) for completion, example in zip(completions, examples, strict=True)]

    def canonical(self, example: Example) -> str:
        """The text that identifies a puzzle, equal for puzzles that count as the same one. Default: the prompt."""
        return prompt_text(example.prompt)

    def _position(self, split: str, index: SupportsIndex) -> int:
        """``index`` as a number, checked."""
        size, position = self.size(split), operator.index(index)
        if not 0 <= position < size:
            raise IndexError(f"{type(self).__name__}: split {split!r} has {size} examples, got index {position}")
        return position


class Task(BaseTask):
    """Puzzles in three splits, generated when first asked for, and a reward for completions.

    Which split a puzzle belongs to is decided by a hash of its canonical text alone (40% pretrain, 40% train, 20%
    heldout). So two splits never share a puzzle, not even between tasks of other sizes, seeds or difficulties.

    Subclasses list in ``generator_parameters`` the parameters that decide how many distinct puzzles exist, and in
    ``max_misses`` after how many puzzles in a row that are not new ones of a split this split is taken to be used up.
    """

    generator_parameters: ClassVar[tuple[str, ...]] = ()
    max_misses: ClassVar[int] = 1000

    def __init__(self, num_pretrain: int, num_train: int, num_heldout: int) -> None:
        """Sets the number of examples of each split (0 or more).

        Raises:
            ValueError: a size that is not an integer, or negative.
        """
        self._sizes = dict(zip(self.SPLITS, (num_pretrain, num_train, num_heldout), strict=True))
        for split, number in self._sizes.items():
            check_int(self, f"num_{split}", number, 0)
        self._found: dict[str, list[Example]] = {split: [] for split in self.SPLITS}
        self._misses = dict.fromkeys(self.SPLITS, 0)
        self._seen: set[str] = set()
        self._drawn = 0

    @abstractmethod
    def candidate(self, number: int) -> Example | None:
        """Puzzle ``number`` = 0, 1, 2, ... of the stream; None where the generator failed or made an unsuitable one.

        Called once for each number, in order; must depend on ``number`` and the constructor's parameters only.
        """

    def size(self, split: str) -> int:
        """Number of examples of a split.

        Raises:
            ValueError: unknown split.
        """
        check_split(self, split)
        return self._sizes[split]

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Example ``index`` of a split; generates those before it too, unless they were generated before.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split, or there are not as many distinct puzzles as ``size(split)`` promises.
        """
        position = self._position(split, index)
        found = self._found[split]
        while len(found) <= position:
            if self._used_up(split):
                raise ValueError(self._shortage(split))
            self._draw()
        return found[position]

    def _draw(self) -> None:
        """Takes the next puzzle of the stream and puts it into its split, whichever split it was drawn for.

        Misses are counted for every split at every draw: what a split contains, and where it ends, is then a function
        of the stream and not of the order of the calls.
        """
        example = self.candidate(self._drawn)
        self._drawn += 1
        home = None if example is None else self._new_in(example)
        for split in self.SPLITS:
            if example is not None and split == home and not self._used_up(split):
                self._found[split].append(example)
                self._misses[split] = 0
            else:
                self._misses[split] += 1

    def _new_in(self, example: Example) -> str | None:
        """The split of a puzzle that was not seen before, else None."""
        text = self.canonical(example)
        if text in self._seen:
            return None
        self._seen.add(text)
        return split_of(text)

    def _used_up(self, split: str) -> bool:
        return self._misses[split] >= self.max_misses

    def _shortage(self, split: str) -> str:
        widen = f", or widen {', '.join(self.generator_parameters)}" if self.generator_parameters else ""
        return (
            f"{type(self).__name__}: num_{split} is {self._sizes[split]}, but only {len(self._found[split])} distinct "
            f"puzzles were found (gave up after {self.max_misses} attempts in a row without a new one); "
            f"lower num_{split}{widen}"
        )


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text: itself, or a conversation's messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def split_of(text: str) -> str:
    """The split of the puzzle with this canonical text: depends on nothing but the text."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    bucket = int.from_bytes(digest[:8], "big") % 5
    return ("pretrain", "pretrain", "train", "train", "heldout")[bucket]


def weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Mean of ``values`` (each in [0, 1]) with ``weights`` (same names; at least one positive): in [0, 1]."""
    # Both sums run over the same names in the same order, so that all values 1 give 1 exactly.
    total = sum(weight * values[name] for name, weight in weights.items())
    return min(1.0, total / sum(weights.values()))


def score_many(task: Any, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
    """Scores of several completions by ``task``, which need not be a ``BaseTask``: one with ``score`` will do."""
    if hasattr(task, "score_many"):
        return list(task.score_many(completions, examples))
    return [task.score(completion, example) for completion, example in zip(completions, examples, strict=True)]


def component_means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each reward component over the scores that have it; a component that none has is left out.

    Every score of a task has ``reward`` and ``solved``. The others may differ between samples: a mixture's samples have
    the components of their own task only, and a zero in place of the others would be a lie about them.
    """
    values: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def check_split(component: BaseTask, split: str) -> None:
    """Raises ``ValueError`` unless ``split`` is one of the task's splits."""
    check(split in component.SPLITS, component, "split", split, f"one of {', '.join(component.SPLITS)}")


def check_weights(component: object, **weights: float) -> None:
    """Raises ``ValueError`` unless every weight is finite and at least 0, and one is positive."""
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        check(number and 0 <= weight < math.inf, component, name, weight, "a finite number, at least 0")
    total = sum(weights.values())
    check(0 < total < math.inf, component, " + ".join(weights), total, "positive and finite")


def check_seconds(component: object, parameter: str, value: Any) -> None:
    """Raises ``ValueError`` unless ``value`` is a number above 0 and at most 3600."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    check(number and 0 < value <= 3600, component, parameter, value, "a number of seconds, above 0 and at most 3600")


def check_int(component: object, parameter: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ``ValueError`` unless ``value`` is an integer from ``low`` to ``high`` (no upper bound if None)."""
    expected = f"an integer, at least {low}" if high is None else f"an integer from {low} to {high}"
    integer = isinstance(value, int) and not isinstance(value, bool)
    check(integer and value >= low and (high is None or value <= high), component, parameter, value, expected)


def reasoning_gym_dataset(name: str, seed: int, **config: Any) -> Any:
    """A reasoning-gym dataset: ``dataset[n]["metadata"]`` is its n-th puzzle, n = 0, 1, 2, ... without end.

    reasoning-gym seeds puzzle n with ``seed + n``, so the streams of seeds 0 and 1 are one stream shifted by one; here
    seeds are hashed first and streams have nothing to do with each other.
    """
    import reasoning_gym

    start = int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:8], "big")
    return reasoning_gym.create_dataset(name, seed=start, **config)
