"""Puzzles from a file and a reward function of the user's own."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from dlmrl_kit.core.registry import nearest, register
from dlmrl_kit.core.validate import check
from dlmrl_kit.tasks import reward_function
from dlmrl_kit.tasks.base import (
    BaseTask,
    Example,
    check_int,
    check_seconds,
    check_split,
    check_weights,
    prompt_text,
    split_of,
    weighted_mean,
)
from dlmrl_kit.tasks.reward_worker import Failed, Failures, Pool, WorkerError, shared


@register("task")
class JsonLines(BaseTask):
    """Puzzles from a JSON Lines file, scored by a function of your own in a worker process with a time limit.

    A line is an object with ``"prompt"`` (a text, or a conversation: a list of messages, each with ``"role"`` and
    ``"content"``), optionally ``"answer"`` (a text; pre-training on answers needs it), optionally ``"split"``, and
    whatever else, which becomes the example's ``meta``. The split is ``pretrain``,
    ``train`` or ``heldout``; either all lines have one or none, and then a hash of the prompt decides (40%, 40%, 20%).
    Empty lines, and lines whose prompt occurred before, are left out.

    The reward function is called as ``function(completion: str, example: Example)`` and returns a number, or a dict of
    components, which are logged separately; each in [0, 1] (others are clipped, with a warning). The reward is the mean
    of the components with ``weights``; without weights it is the component ``"reward"``. Unless it returns one,
    ``"solved"`` is whether the reward is 1. Where the function exceeds the time limit, raises, or takes its process
    down, all components are 0 and ``"failed"`` is 1; ``failures`` counts which, and the first of each is a warning.

    Naming a function means running its module, with your rights: it is imported in a worker process when something is
    scored for the first time (the current folder is searched last), and not before. There it is first tried on an empty
    completion, which models do write; what it returns tells the names of its components. What it prints is discarded.

    Args:
        path: the file, UTF-8.
        reward: the reward function, ``"module:function"``.
        weights: of the components that make up the reward, by name; at least one positive.
        timeout: seconds for one call of the reward function.
        workers: processes that score.

    Raises:
        ValueError: no such file, a line that is not as above (with file and line), no module of that name, or a
            parameter out of its range.
    """

    def __init__(
        self, path: str, reward: str, weights: dict[str, float] | None = None, timeout: float = 5.0, workers: int = 1
    ) -> None:
        check(isinstance(path, str | os.PathLike) and bool(os.fspath(path)), self, "path", path, "the path of a file")
        try:
            reward_function.check_name(reward)
        except ValueError as error:
            raise ValueError(f"JsonLines.reward: {error}") from None
        if weights is not None:
            check(isinstance(weights, dict), self, "weights", weights, "a dict")
            check_weights(self, **{f"weights[{name!r}]": weight for name, weight in weights.items()})
        check_seconds(self, "timeout", timeout)
        check_int(self, "workers", workers, 1, 64)
        self.path = Path(path).expanduser()
        self.reward, self.weights, self.timeout, self.workers = reward, weights, timeout, workers
        self.failures = Failures()
        self._examples = _read(self.path)
        self._components: tuple[str, ...] | None = None
        self._clipped = False

    def label(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def size(self, split: str) -> int:
        """Number of examples of a split in the file.

        Raises:
            ValueError: unknown split.
        """
        check_split(self, split)
        return len(self._examples[split])

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Example ``index`` of a split, in the order of the file.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split.
        """
        position = self._position(split, index)
        return self._examples[split][position]

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """What the reward function returns for a completion, ``reward``, ``solved`` and ``failed``; in [0, 1].

        Raises:
            WorkerError: the function cannot be loaded, fails on an empty completion, or lacks a component that is
                needed.
        """
        return self.score_many([completion], [example])[0]

    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores of several completions, as ``score``; shared out among the workers."""
        if self._components is None and examples:
            self._components = self._try_out(examples[0])
        texts = [completion if isinstance(completion, str) else "" for completion in completions]
        results = self._pool().run(list(zip(texts, examples, strict=True)), self.timeout)
        return [self._scores(result, example) for result, example in zip(results, examples, strict=True)]

    def _scores(self, result: dict[str, float] | Failed, example: Example) -> dict[str, float]:
        names = self._components or ()
        if isinstance(result, dict) and set(result) != set(names):
            found = f"returned the components {', '.join(sorted(result))} instead of {', '.join(sorted(names))}"
            result = Failed("error", f"{self.reward} {found}")
        if isinstance(result, Failed):
            self.failures.note(f"JsonLines({str(self.path)!r})", result, prompt_text(example.prompt))
            return {**dict.fromkeys(names, 0.0), "reward": 0.0, "solved": 0.0, "failed": 1.0}
        values = {name: self._clip(name, value) for name, value in result.items()}
        reward = values["reward"] if self.weights is None else weighted_mean(values, self.weights)
        solved = values.get("solved", reward)
        return {**values, "reward": reward, "solved": float(solved == 1), "failed": 0.0}

    def _clip(self, name: str, value: float) -> float:
        clipped = min(1.0, max(0.0, value))
        if clipped != value and not self._clipped:
            self._clipped = True
            text = f"{self.reward} returned {name} = {value:g}; components are clipped to [0, 1] (said once)"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return clipped

    def _try_out(self, example: Example) -> tuple[str, ...]:
        """The names of the components; also whether the function works at all, before anything is trained with it."""
        (result,) = self._pool().run([("", example)], self.timeout)
        if isinstance(result, Failed):
            problem = "\n".join(filter(None, (result.message, result.details)))
            raise WorkerError(f"the reward function {self.reward} fails on an empty completion: {problem}")
        for name in ["reward"] if self.weights is None else self.weights:
            if name not in result:
                hint = "return it, or set JsonLines.weights" if self.weights is None else "JsonLines.weights names it"
                known = nearest(name, result)
                raise WorkerError(f"the reward function {self.reward} returns no component {name!r} ({hint}); {known}")
        return tuple(result)

    def _pool(self) -> Pool:
        return shared(functools.partial(reward_function.load, self.reward), self.workers)


def _read(path: Path) -> dict[str, list[Example]]:
    """The examples of each split.

    Raises:
        ValueError: anything wrong with the file.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise ValueError(f"JsonLines.path {str(path)!r} cannot be read: {error.strerror}") from None
    found: dict[str, list[Example]] = {split: [] for split in BaseTask.SPLITS}
    first: dict[str, tuple[int, str]] = {}
    explicit: bool | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = _fields(line)
            if explicit not in (None, "split" in fields):
                raise ValueError("either all lines have a 'split' or none; this one differs from the first")
            explicit = "split" in fields
            prompt, answer, split = fields.pop("prompt"), fields.pop("answer", ""), fields.pop("split", None)
            split = split or split_of(prompt_text(prompt))
            earlier, home = first.setdefault(prompt_text(prompt), (number, split))
            if home != split:
                raise ValueError(f"the prompt of line {earlier}, which is in {home}, is in {split} here")
        except ValueError as error:
            raise ValueError(f"JsonLines.path: {path}:{number}: {error}") from None
        if earlier == number:
            found[split].append(Example(prompt, answer, fields))
    if not first:
        raise ValueError(f"JsonLines.path: {path} has no puzzles; write one JSON object with a 'prompt' on each line")
    return found


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(fields, Mapping):
        raise ValueError(f"a line must be an object with a 'prompt', got {_kind(fields)}")
    if "prompt" not in fields:
        hint = nearest("prompt", fields) if fields else "it is empty"
        raise ValueError(f"no field 'prompt'; {hint}")
    if not isinstance(fields["prompt"], str | list):
        raise ValueError(f"'prompt' must be a text, got {_kind(fields['prompt'])} (a list of messages will do)")
    if not fields["prompt"]:
        raise ValueError("'prompt' is empty")
    for message in fields["prompt"] if isinstance(fields["prompt"], list) else ():
        keys = {"role", "content"}
        if (
            not isinstance(message, Mapping)
            or set(message) != keys
            or not all(isinstance(message[k], str) for k in keys)
        ):
            raise ValueError("a message of 'prompt' must be an object with the texts 'role' and 'content'")
    if "answer" in fields and not isinstance(fields["answer"], str):
        raise ValueError(f"'answer' must be a text, got {_kind(fields['answer'])}")
    if "split" in fields and fields["split"] not in BaseTask.SPLITS:
        raise ValueError(f"no split {fields['split']!r}; {nearest(str(fields['split']), BaseTask.SPLITS)}")
    return dict(fields)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
