"""Examples from a file, scored by a reward function of the user's own."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias

from dlmrl_kit.core.registry import nearest, register
from dlmrl_kit.core.validate import check, refuse_value
from dlmrl_kit.tasks.base import (
    BaseTask,
    Example,
    check_int,
    check_reward_weights,
    check_seconds,
    check_split,
    prompt_text,
    split_of,
    weighted_mean,
)
from dlmrl_kit.tasks.reward_function import check_reward_name, load_reward_function
from dlmrl_kit.tasks.reward_worker import Failures, Pool, WorkerError, shared
from dlmrl_kit.tasks.worker_process import Failed

RewardPool: TypeAlias = Pool[tuple[str, Example], dict[str, float]]


@register("task")
class JsonLines(BaseTask):
    """Examples from a JSON Lines file, scored by a function of your own in a worker process with a time limit.

    A line is a JSON object with these fields:

    * ``"prompt"``: a text, or a conversation: a list of messages, each with ``"role"`` and ``"content"``;
    * ``"answer"``, optional: a text; pre-training on answers needs it;
    * ``"split"``, optional: ``pretrain``, ``train`` or ``heldout``. Either all lines have it or none has; then a hash
      of the prompt decides (40%, 40%, 20%);
    * all others become the example's ``meta``.

    Empty lines, and lines whose prompt occurred before, are left out.

    The reward function is called as ``function(completion: str, example: Example)`` and returns a number, or a dict of
    components, which are logged separately. Each should be in [0, 1]; others are clipped, with a warning. The reward is
    the mean of the components with ``weights``; without weights it is the component ``"reward"``. The component
    ``"solved"`` is 1 where the reward is 1, unless the function returns its own. Where the function exceeds the time
    limit, raises, or takes its process down, all components are 0 and ``"failed"`` is 1. ``failures`` counts these by
    kind, and the first of each kind is a warning.

    Naming a function means running its module, with your rights. A worker process imports it (the current folder is
    searched last) when something is scored for the first time, and not before. The function is first tried on an empty
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
            check_reward_name(reward)
        except ValueError as error:
            refuse_value(self, "reward", str(error), joint=": ")
        if weights is not None:
            check(isinstance(weights, dict), self, "weights", weights, "a dict")
            check_reward_weights(self, ("weights",), **{f"weights[{name!r}]": w for name, w in weights.items()})
        check_seconds(self, "timeout", timeout)
        check_int(self, "workers", workers, 1, 64)
        self.path = Path(path).expanduser()
        self.reward, self.weights, self.timeout, self.workers = reward, weights, timeout, workers
        self.failures = Failures()
        self._examples = _read(self, self.path)
        self._components: tuple[str, ...] | None = None
        self._clipped = False

    def label(self) -> str:
        """Returns the file's name without its ending."""
        return self.path.stem

    def size(self, split: str) -> int:
        """Returns the number of examples of a split in the file.

        Raises:
            ValueError: unknown split.
        """
        check_split(self, split)
        return len(self._examples[split])

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Returns example ``index`` of a split, in the order of the file.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split.
        """
        position = self._position(split, index)
        return self._examples[split][position]

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Returns the components of the reward function, ``reward``, ``solved`` and ``failed``, each in [0, 1].

        Raises:
            WorkerError: the function cannot be loaded, fails on an empty completion, or lacks a component that is
                needed.
        """
        return self.score_many([completion], [example])[0]

    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores several completions, as ``score``; they are shared out among the workers."""
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
        """Returns the names of the components; finds out whether the function works at all, before it trains a model.

        Raises:
            WorkerError: it fails, or returns too few components.
        """
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

    def _pool(self) -> RewardPool:
        return shared(functools.partial(load_reward_function, self.reward), self.workers)


def _read(task: JsonLines, path: Path) -> dict[str, list[Example]]:
    """Returns the examples of each split.

    Raises:
        ValueError: anything wrong with the file.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        refuse_value(task, "path", f"{str(path)!r} cannot be read: {error.strerror}")
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
            refuse_value(task, "path", f"{path}:{number}: {error}", joint=": ")
        if earlier == number:
            found[split].append(Example(prompt, answer, fields))
    if not first:
        reason = f"{path} has no examples; write one JSON object with a 'prompt' on each line"
        refuse_value(task, "path", reason, joint=": ")
    return found


def _fields(line: bytes) -> dict[str, Any]:
    """Returns the fields of a line.

    Raises:
        ValueError: anything wrong with it.
    """
    fields = _object(line)
    if "prompt" not in fields:
        hint = nearest("prompt", fields) if fields else "it is empty"
        raise ValueError(f"no field 'prompt'; {hint}")
    _check_prompt(fields["prompt"])
    if "answer" in fields and not isinstance(fields["answer"], str):
        raise ValueError(f"'answer' must be a text, got {_kind(fields['answer'])}")
    if "split" in fields and fields["split"] not in BaseTask.SPLITS:
        raise ValueError(f"no split {fields['split']!r}; {nearest(str(fields['split']), BaseTask.SPLITS)}")
    return fields


def _object(line: bytes) -> dict[str, Any]:
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
    return dict(fields)


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str | list):
        raise ValueError(f"'prompt' must be a text, got {_kind(prompt)} (a list of messages will do)")
    if not prompt:
        raise ValueError("'prompt' is empty")
    for message in prompt if isinstance(prompt, list) else ():
        whole = isinstance(message, Mapping) and set(message) == {"role", "content"}
        if not whole or not all(isinstance(text, str) for text in message.values()):
            raise ValueError("a message of 'prompt' must be an object with the texts 'role' and 'content'")


def _kind(value: object) -> str:
    """Returns what a JSON value is called in an error."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
