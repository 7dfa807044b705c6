"""The interface of tasks, ``BaseTask``, and ``Task``, which turns a stream of examples into disjoint splits.

A subclass of ``Task`` implements ``candidate`` (the n-th example of an endless stream) and ``score``. ``Task`` divides
the stream into splits, leaves duplicates out, keeps what was generated, and gives up when the stream runs dry.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import numbers
import operator
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsIndex

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.promises import Given, promises, shown
from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.tasks.checks import check_int


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Args:
        prompt: what a policy is given; ``prompt_text`` makes a text of it.
        answer: one right completion; empty where the task knows none.
        meta: whatever else the task tells about the example, for rewards and demonstrators.
        prefix: what the answer begins with: the policy is given it behind the prompt, and completes it.
        most: the most tokens of the prompt, prefix included; a longer one is cut from the left. None: it is not.
    """

    prompt: Prompt
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""
    most: int | None = None


def scores_fault(scores: object, count: int) -> str:
    """Says what is wrong with the scores of ``count`` completions, as the end of a sentence; "" if nothing is."""
    if not isinstance(scores, list | tuple) or len(scores) != count:
        got = f"{len(scores)} scores" if isinstance(scores, list | tuple) else shown(scores)
        return f"{got} for {count} completions; it should be a list with one dict of components for each"
    return next(filter(None, map(score_fault, scores)), "")


def score_fault(score: object) -> str:
    """Says what is wrong with the score of one completion, as ``scores_fault``."""
    if not isinstance(score, Mapping) or not {"reward", "solved"} <= score.keys():
        return f"{clipped(repr(score))}; it should be a dict of components, 'reward' and 'solved' among them"
    for name, value in score.items():
        if not isinstance(name, str):
            return f"{clipped(repr(score))}; components are named by texts, not by {clipped(repr(name))}"
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            return f"{name} = {clipped(repr(value))}, which is no finite number"
    return ""


def example_fault(example: object) -> str:
    """Says what is wrong with what should be an example, as ``scores_fault``."""
    if not isinstance(example, Example):
        return f"{shown(example)}; it should be an Example"
    if not isinstance(example.answer, str) or not isinstance(example.meta, dict):
        return f"{clipped(repr(example))}; its answer should be a text and its meta a dict"
    prompt: object = example.prompt
    messages = isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt)
    wanted = "it should be a text or a list of messages"
    return "" if isinstance(prompt, str) or messages else f"an Example of the prompt {shown(prompt)}; {wanted}"


def _size(result: object, given: Given) -> str:
    whole = isinstance(result, int) and not isinstance(result, bool) and result >= 0
    return "" if whole else f"{shown(result)}; it should be a whole number, at least 0"


class BaseTask(Dependent, ABC):
    """What the kit asks of a task: examples in three splits, and a reward for completions.

    Every task inherits from it, and whoever calls a task relies on what stands here. Most tasks inherit from ``Task``,
    which makes disjoint splits out of a stream of examples.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ("pretrain", "train", "heldout")

    main_thread: bool = False
    """Whether the task must be called in the main thread, as scorers must that set signals. Others are called in a
    thread beside the model, so that both work at the same time; never in two threads at once."""

    in_order: bool = False
    """Whether example n can only be made after those before it. Training then goes through a split that is too large
    for a list of its indices from the beginning, and not in an order of which the first index may be anywhere."""

    at_hand: bool = False
    """Whether its examples exist, so that all of their prompts can be looked at before training begins."""

    def label(self) -> str:
        """Returns what the task is called in metrics. Default: the class name."""
        return type(self).__name__

    @abstractmethod
    @promises(_size)
    def size(self, split: str) -> int:
        """Returns the number of examples of a split.

        Raises:
            ValueError: unknown split.
        """

    @abstractmethod
    @promises(lambda result, given: example_fault(result))
    def example(self, split: str, index: SupportsIndex) -> Example:
        """Returns example ``index`` of a split; the same one whenever it is asked for.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split.
        """

    @abstractmethod
    @promises(lambda result, given: score_fault(result))
    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Returns the reward components of a completion by name, each a finite number.

        Two are always there: ``"reward"``, which training maximises, and ``"solved"``, which is 1.0 if the completion
        is exactly right and else 0.0, and whose mean is the accuracy. A reward may be negative or above 1, as sums of
        published components are; nothing clips it, and it never decides what counts as solved. Never raises and takes
        bounded time, whatever ``completion`` is. A component is averaged over the samples that have it
        (``component_means``).
        """

    @promises(lambda result, given: scores_fault(result, len(given["completions"])))
    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores several completions, each of the example at its position. Default: one call of ``score`` each."""
        return [self.score(completion, example) for completion, example in zip(completions, examples, strict=True)]

    def metrics(self) -> dict[str, str]:
        """Returns the components of a score that tables of results show, each with what its mean is called there.

        A task that is published with another number than the share of solved examples adds that one, so that neither
        is taken for the other. Default: ``solved`` alone, the accuracy.
        """
        return {"solved": "accuracy"}

    def canonical(self, example: Example) -> str:
        """Returns a text that is equal for examples that count as the same one, but for its white space and Unicode.

        Default: the prompt.
        """
        return prompt_text(example.prompt)

    def place(self, split: str, index: int) -> str:
        """Returns where an example is to be found, for messages: file and line where it has these."""
        return f"{self.label()}, example {index} of {split}"

    def questions(self, split: str) -> Collection[str] | None:
        """Returns what the examples of a split ask (``question_text``); None where the task would have to make them.

        A mixture compares them between its tasks. Default: None.
        """
        return None

    def notes(self) -> list[str]:
        """Returns what whoever starts a run should know of the task's examples and scores, a line each. Default: []."""
        return []

    def sketch(self) -> BaseTask:
        """Returns a task with examples of the same form that need no download, for dry runs. Default: itself."""
        return self

    def _position(self, split: str, index: SupportsIndex) -> int:
        """Returns ``index`` as a number, checked as ``example`` must."""
        size, position = self.size(split), operator.index(index)
        if not 0 <= position < size:
            raise IndexError(f"{type(self).__name__}: split {split!r} has {size} examples, got index {position}")
        return position


class Task(BaseTask):
    """A task whose examples are generated when they are first asked for, and divided into splits by their text.

    A hash of its canonical text alone decides which split an example belongs to (40% pretrain, 40% train, 20%
    heldout). So two splits never share an example, not even between tasks of other sizes, seeds or difficulties.

    Subclasses list in ``generator_parameters`` the parameters that decide how many distinct examples exist. A split is
    taken to be used up after ``max_misses`` candidates in a row that were not new examples of this split.
    """

    in_order = True
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
    @promises(lambda result, given: "" if result is None else example_fault(result))
    def candidate(self, number: int) -> Example | None:
        """Returns example ``number`` = 0, 1, 2, ... of the stream, or None where the generator has none.

        It is called once for each number, in order, and must depend on ``number`` and the constructor's parameters
        only.
        """

    def size(self, split: str) -> int:
        """Returns the number of examples of a split.

        Raises:
            ValueError: unknown split.
        """
        check_split(self, split)
        return self._sizes[split]

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Returns example ``index`` of a split; generates it, and those before it, unless that was done before.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split, or there are not as many distinct examples as ``size(split)`` promises.
        """
        position = self._position(split, index)
        found = self._found[split]
        while len(found) <= position:
            if self._used_up(split):
                raise ValueError(self._shortage(split))
            self._draw()
        return found[position]

    def _draw(self) -> None:
        """Takes the next candidate of the stream and puts it into its split, whichever split it was drawn for.

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
        """Returns the split of an example that was not seen before, else None."""
        text = normalised(self.canonical(example))
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
            f"examples were found (gave up after {self.max_misses} attempts in a row without a new one); "
            f"lower num_{split}{widen}"
        )


INSTRUCTING = ("system", "developer")
"""Roles of messages that say how to answer, and ask nothing."""


def prompt_text(prompt: Prompt) -> str:
    """Returns a prompt as one text: itself, or a conversation's messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def question_text(prompt: Prompt) -> str:
    """Returns what a prompt asks, as a text that is equal for prompts that ask the same in another form.

    White space and Unicode are normalised, a conversation's instructions (``INSTRUCTING``) are left out, and a user's
    only message is its text.
    """
    if isinstance(prompt, str):
        return normalised(prompt)
    messages = [message for message in prompt if message["role"] not in INSTRUCTING] or prompt
    said = [(message["role"], normalised(message["content"])) for message in messages]
    return said[0][1] if [role for role, _ in said] == ["user"] else json.dumps(said, ensure_ascii=False)


def normalised(text: str) -> str:
    """Returns a text in the form in which questions are compared.

    White space becomes single spaces, with none at the ends. Letters are composed; those that differ in width, and
    quotation marks and dashes in style, are one; invisible characters go, control characters among them. What carries
    a meaning stays: upper and lower case, exponents, fractions, mathematical letters.
    """
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", "".join(map(_plain, unicodedata.normalize("NFC", text))))
    return " ".join(text.split())


_MEANT = ("<super>", "<sub>", "<fraction>", "<font>", "<circle>")
"""Compatibility characters that say something else than the plain ones: 2² is not 22."""
_STYLES = dict.fromkeys("‘’‚‛′", "'") | dict.fromkeys("“”„‟″", '"') | dict.fromkeys("‐‑‒–—―−", "-")
"""Quotation marks and dashes, and what they are in plain text."""
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Joiners, fillers and variation selectors: they show nothing, and are no format characters by their category."""


@functools.lru_cache(4096)
def _plain(character: str) -> str:
    if character.isspace() or character == "\u2800":  # the last one is a Braille pattern without dots
        return " "
    # Zero-width characters, soft hyphens, marks; control characters.
    if character in _STYLES or unicodedata.category(character) in ("Cf", "Cc") or _UNSEEN.fullmatch(character):
        return _STYLES.get(character, "")
    if unicodedata.decomposition(character).startswith(_MEANT):
        return character
    return unicodedata.normalize("NFKC", character)


def said_of(task: BaseTask) -> list[str]:
    """Returns the notes of a task, each with its label, as they are printed when a run starts."""
    return [f"{task.label()}: {note}" for note in task.notes()]


def split_of(text: str) -> str:
    """Returns the split of an example with this text, once it is ``normalised``; depends on nothing but the text."""
    digest = hashlib.sha256(normalised(text).encode(errors="surrogatepass")).digest()
    bucket = int.from_bytes(digest[:8], "big") % 5
    return ("pretrain", "pretrain", "train", "train", "heldout")[bucket]


def weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Returns the mean of ``values`` with ``weights`` of the same names, at least one positive."""
    # Both sums run over the same names in the same order, so that all values 1 give 1 exactly.
    total = sum(weight * values[name] for name, weight in weights.items())
    return total / sum(weights.values())


def component_values(scores: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Returns the values of each reward component in the scores that have it.

    Every score of a task has ``reward`` and ``solved``. The others may differ between samples: a sample of a mixture
    has the components of its own task only, and zeros in place of the others would be false.
    """
    values: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.items():
            values.setdefault(name, []).append(value)
    return values


def component_means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each reward component over the scores that have it."""
    return {name: sum(found) / len(found) for name, found in component_values(scores).items()}


def check_split(task: BaseTask, split: str) -> None:
    """Raises ``ValueError`` unless ``split`` is one of the task's splits."""
    if split not in task.SPLITS:
        raise ValueError(f"{type(task).__name__}.split must be one of {', '.join(task.SPLITS)}, got {split!r}")
