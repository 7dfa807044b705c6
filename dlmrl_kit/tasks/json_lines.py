"""Examples from a file, scored by a reward function of the user's own."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex, TypeAlias

from dlmrl_kit.core.dependencies import anchored_paths
from dlmrl_kit.core.registry import nearest, register
from dlmrl_kit.core.validate import check, refuse_value
from dlmrl_kit.sandbox.bubblewrap import require_bubblewrap
from dlmrl_kit.scoring.pool import Failures, Pool, WorkerError, shared
from dlmrl_kit.scoring.process import Failed
from dlmrl_kit.tasks.base import BaseTask, Example, check_split, prompt_text, question_text, weighted_mean
from dlmrl_kit.tasks.checks import check_int, check_memory, check_reward_weights, check_seconds
from dlmrl_kit.tasks.fields import Fields
from dlmrl_kit.tasks.own_examples import OwnExamples
from dlmrl_kit.tasks.reward_files import folder_of, source_files
from dlmrl_kit.tasks.reward_function import check_reward_name, load_reward_function
from dlmrl_kit.tasks.rows import Source

RewardPool: TypeAlias = Pool[tuple[str, Example], dict[str, float]]


@register("task")
class JsonLines(BaseTask):
    """Your own examples, scored by a function of your own in a worker process with a time limit.

    They are a JSON Lines file, or a JSON, CSV, TSV or parquet file, each also with ``.gz``, or a data set of the hub. A
    line, or row, has these fields, which may have other names:

    * ``"prompt"``: a text, or a conversation: a list of messages, each with ``"role"`` and ``"content"``;
    * ``"answer"``, optional: pre-training on answers needs it. One that is no text becomes one, as JSON; its value
      stays in ``meta``;
    * ``"split"``, optional: ``pretrain``, ``train`` or ``heldout``. Either all lines have it or none has; then a hash
      of the question decides (40%, 40%, 20%). A data set of the hub has splits of its own;
    * all others become the example's ``meta``.

    Splits share no question, whatever its white space, its form of Unicode, and its instructions (``question_text``).
    Empty lines are left out, and so are lines whose prompt occurred before; a warning counts these, and those of them
    that have another answer.

    The reward function is called as ``function(completion: str, example: Example)`` and returns a number, or a dict of
    components, which are logged separately: any finite numbers, negative ones too, which nothing clips. The reward is
    the mean of the components with ``weights``; without weights it is the component ``"reward"``. The accuracy is that
    of the component ``"solved"``, 1 or 0; where the function returns none, a completion counts as solved if its reward
    is exactly 1, and a warning says so once a reward is outside [0, 1]. Where the function exceeds the time limit or
    the memory, raises, or takes its process down, all components are 0 and ``"failed"`` is 1. ``failures`` counts these
    by kind, and the first of each kind is a warning.

    Naming a function means running its module, with your rights. A worker process imports it (``reward_folder`` is
    searched last) when something is scored for the first time, and not before. The function is first tried on an empty
    completion, which models do write; what it returns tells the names of its components. What it prints is discarded.

    Args:
        path: the file, UTF-8; a file with an unknown ending is read as JSON Lines. Or the id of a data set of the hub,
            or a folder laid out like one.
        reward: the reward function, ``"module:function"``.
        weights: of the components that make up the reward, by name; at least one positive.
        timeout: seconds for one call of the reward function.
        workers: processes that score.
        memory: address space of each in GiB, where the system can limit it; None: no limit, as a function needs that
            uses a GPU.
        reward_folder: where the module of the reward function is looked for after the Python path; None: in the current
            folder.
        prompt_field, answer_field, split_field: what the fields are called in the data.
        template: a text with ``{field}`` for fields of a row, which is the prompt instead of ``prompt_field``; ``{{``
            is a brace.
        splits: the split here for each value of ``split_field``, or for each split of a data set; None for one that is
            left out. By default the values are the splits themselves, and a data set's ``test`` is ``heldout``.
        config, revision: of a data set of the hub; a run records the commit.
        sandbox: whether the workers run in a sandbox (docs/sandbox.md), for functions that execute what a model wrote:
            they see the Python files of the function, the kit and installed packages, and nothing else of the machine.

    Raises:
        ValueError: no such file, a line that is not as above (with file and line), no module of that name, or a
            parameter out of its range.
        SandboxError: there is no sandbox to be had; says what to install.
    """

    at_hand = True

    def __init__(
        self,
        path: str,
        reward: str,
        weights: dict[str, float] | None = None,
        timeout: float = 5.0,
        workers: int = 1,
        reward_folder: str | None = None,
        memory: float | None = 16.0,
        prompt_field: str = "prompt",
        answer_field: str = "answer",
        split_field: str = "split",
        template: str | None = None,
        splits: dict[str, str | None] | None = None,
        config: str | None = None,
        revision: str | None = None,
        sandbox: bool = False,
    ) -> None:
        check(isinstance(path, str | os.PathLike) and bool(os.fspath(path)), self, "path", path, "the path of a file")
        try:
            check_reward_name(reward, reward_folder)
        except ValueError as error:
            refuse_value(self, "reward", str(error), joint=": ")
        if weights is not None:
            check(isinstance(weights, dict), self, "weights", weights, "a dict")
            check_reward_weights(self, ("weights",), **{f"weights[{name!r}]": w for name, w in weights.items()})
        check_seconds(self, "timeout", timeout)
        check_int(self, "workers", workers, 1, 64)
        check_memory(self, "memory", memory)
        check(isinstance(sandbox, bool), self, "sandbox", sandbox, "True or False")
        if sandbox:
            require_bubblewrap()
        self.path = Path(path).expanduser()
        self.reward, self.weights, self.timeout, self.workers = reward, weights, timeout, workers
        self.reward_folder, self.memory, self.sandbox = reward_folder, memory, sandbox
        self.failures = Failures()
        self.prompt_field, self.answer_field, self.split_field = prompt_field, answer_field, split_field
        self.template, self.splits, self.config, self.revision = template, splits, config, revision
        fields = Fields(prompt_field, answer_field, split_field, template, splits)
        fields.check(self, prompt_field=prompt_field, answer_field=answer_field, split_field=split_field)
        self._data = OwnExamples(self, Source(str(self.path), "", config, revision), fields)
        self._components: tuple[str, ...] | None = None
        self._accuracy_doubtful = False

    @classmethod
    def anchored(cls, settings: Mapping[str, object]) -> dict[str, object]:
        """Makes the path absolute, and names the folder of the reward function's module if it is in the current one."""
        places = anchored_paths(settings, "path", "reward_folder")
        reward, given = settings.get("reward"), settings.get("reward_folder")
        found = folder_of(reward) if given is None and isinstance(reward, str) else None
        if found is not None and found.is_relative_to(Path.cwd()) and "site-packages" not in found.parts:
            places["reward_folder"] = str(found)
        return places

    def files(self) -> tuple[Path, ...]:
        """Returns the file or folder of examples, if it is here, and the files with the code of the reward function."""
        own = () if self._data.source.local is None else (self.path,)
        return (*own, *source_files(self.reward, self.reward_folder))

    def versions(self) -> dict[str, str]:
        """Returns the commits of the hub's data set that the examples are from."""
        read = [origin for origin in self._data.origins if origin.source.local is None]
        return {f"JsonLines {origin.source}": origin.revision for origin in read}

    def label(self) -> str:
        """Returns the file's name without its ending."""
        return self.path.stem

    def size(self, split: str) -> int:
        """Returns the number of examples of a split in the file.

        Raises:
            ValueError: unknown split.
        """
        check_split(self, split)
        return len(self._data.examples[split])

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Returns example ``index`` of a split, in the order of the file.

        Raises:
            IndexError: ``index`` is negative or not below ``size(split)``.
            ValueError: unknown split.
        """
        position = self._position(split, index)
        return self._data.examples[split][position]

    def place(self, split: str, index: int) -> str:
        """Returns the file and the line of an example, ``data.jsonl:3``, or the data set, its split and the row."""
        return self._data.places[split][index]

    def questions(self, split: str) -> set[str]:
        """Returns what the examples of a split ask.

        Raises:
            ValueError: unknown split.
        """
        check_split(self, split)
        return {question_text(example.prompt) for example in self._data.examples[split]}

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Returns the components of the reward function, ``reward``, ``solved`` and ``failed``.

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
        reward = result["reward"] if self.weights is None else weighted_mean(result, self.weights)
        if "solved" not in result:
            self._doubt_accuracy(reward)
        return {**result, "reward": reward, "solved": float(result.get("solved", reward) == 1), "failed": 0.0}

    def _doubt_accuracy(self, reward: float) -> None:
        """Warns, once, where a reward shows that "exactly 1" is not what this function gives right answers."""
        if self._accuracy_doubtful or 0 <= reward <= 1:
            return
        self._accuracy_doubtful = True
        text = (
            f"{self.reward} returned the reward {reward:g} and no component 'solved': the accuracy is the share of "
            "rewards that are exactly 1; return 'solved', 1 or 0, beside the reward (said once)"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=2)

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
        load = functools.partial(load_reward_function, self.reward, self.reward_folder)
        files = map(str, source_files(self.reward, self.reward_folder))
        seen = tuple(os.path.abspath(file) for file in files) if self.sandbox else None
        return shared(load, self.workers, None if self.memory is None else int(self.memory * 2**30), seen)
