"""Any dataset of reasoning-gym as a task, apart from those whose scorer evaluates text or pays for anything."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from dlmrl_kit.core.registry import nearest, register
from dlmrl_kit.core.validate import check, refuse_value
from dlmrl_kit.scoring.pool import Failures, Pool, WorkerError, shared
from dlmrl_kit.scoring.process import Failed
from dlmrl_kit.tasks.base import Example, Task, prompt_text, weighted_mean
from dlmrl_kit.tasks.checks import check_int, check_reward_weights, check_seconds
from dlmrl_kit.tasks.gym_scorers import ACCEPTS_MORE, EVALUATES_TEXT, FULL_MARKS_ONLY, PAYS_CONSTANTS
from dlmrl_kit.tasks.gym_worker import CHUNK, Gym, Made, Request

GENERATE_SECONDS = 120.0
"""Time limit of making the entries of one request."""
MEMORY = 4 * 2**30
"""Address space of a worker in bytes."""

GymPool: TypeAlias = Pool[Request, list[Made] | float]


@register("task")
class ReasoningGym(Task):
    """Any dataset of reasoning-gym by name, scored by its own scorer in a worker process with a time limit.

    The prompt is the dataset's question and ``prompt_suffix``. The answer is the dataset's answer without white space
    around it, or else the first text in its metadata that is an answer and gets full marks. (``boxnet`` and
    ``rush_hour`` tell no answer: theirs is empty, and they are nothing to pre-train on.) ``meta["entry"]`` is the
    dataset's entry. Entries whose own answer does not get full marks are left out.

    Reward components:

    * ``score``: the scorer's value for the completion without white space around it, clipped to [0, 1]; for the
      datasets in ``FULL_MARKS_ONLY``, whose partial marks pay a constant, 0 unless it is 1;
    * ``solved``: 1 if the score is 1, else 0;
    * ``failed``: 1 if there is no score because the scorer exceeded the time limit or its process died. The others are
      0 then, and ``failures`` counts these by kind;
    * ``reward``: the weighted mean of ``score`` and ``solved``.

    Datasets in ``EVALUATES_TEXT``, whose scorer evaluates text, and in ``PAYS_CONSTANTS``, whose scorer gives full
    marks to a constant, are refused. Those in ``ACCEPTS_MORE`` give full marks to the answer with something else beside
    it; ``notes`` says so. Many scorers give a little to any text; read one before you trust it. Should another scorer
    execute code made out of text after all, the worker stops it and the run ends with an error.

    Entries are made in a worker process too, with a fixed hash seed, for a few datasets depend on the order of sets.
    The first one takes about two seconds more, for the import of reasoning-gym.

    Args:
        dataset: name in reasoning-gym (``"chain_sum"``, ``"knights_knaves"``, ...).
        config: parameters of the dataset, as for ``reasoning_gym.create_dataset``, without ``seed`` and ``size``.
        seed: decides which examples there are, and in which order.
        num_pretrain, num_train, num_heldout: examples of each split; every 5 entries made give 2, 2 and 1.
        prompt_suffix: added to every question. It does not move examples to other splits.
        score_weight, solved_weight: weights of the reward, at least one positive.
        timeout: seconds for scoring one completion.
        workers: processes that score.

    Raises:
        ValueError: a dataset that does not exist or is refused, or a parameter out of its range.
    """

    generator_parameters = ("config",)

    def __init__(
        self,
        dataset: str,
        config: dict[str, Any] | None = None,
        seed: int = 0,
        num_pretrain: int = 8000,
        num_train: int = 2000,
        num_heldout: int = 256,
        prompt_suffix: str = "",
        score_weight: float = 1.0,
        solved_weight: float = 0.0,
        timeout: float = 5.0,
        workers: int = 1,
    ) -> None:
        super().__init__(num_pretrain, num_train, num_heldout)
        check_int(self, "seed", seed, 0)
        check(isinstance(prompt_suffix, str), self, "prompt_suffix", prompt_suffix, "a text")
        check_reward_weights(self, score_weight=score_weight, solved_weight=solved_weight)
        check_seconds(self, "timeout", timeout)
        check_int(self, "workers", workers, 1, 64)
        self.dataset = _checked_name(self, dataset)
        self.config = _checked_config(self, dataset, config)
        self.seed, self.prompt_suffix, self.timeout, self.workers = seed, prompt_suffix, timeout, workers
        self.weights = {"score": score_weight, "solved": solved_weight}
        self.failures = Failures()
        self._ahead: list[Made] = []  # entries of the stream from this number on, which were made in one request
        self._ahead_of = 0
        self._unfit = ""

    def label(self) -> str:
        """Returns the dataset's name."""
        return self.dataset

    def notes(self) -> list[str]:
        """Says what the dataset's scorer accepts beside the answer, and which of its marks do not count."""
        notes = []
        if self.dataset in ACCEPTS_MORE:
            notes.append(f"its scorer gives full marks to the answer with {ACCEPTS_MORE[self.dataset]}")
        if self.dataset in FULL_MARKS_ONLY:
            notes.append(f"only full marks count: {FULL_MARKS_ONLY[self.dataset]}")
        return notes

    def candidate(self, number: int) -> Example | None:
        """Returns example ``number`` of the stream; None where the dataset could not make it, or its answer is wrong.

        Raises:
            WorkerError: making it takes too long or kills the worker.
        """
        if not 0 <= number - self._ahead_of < len(self._ahead):
            (result,) = self._pool().run([("make", number)], GENERATE_SECONDS)
            if isinstance(result, Failed):
                raise WorkerError(f"ReasoningGym: making entry {number} of {self.dataset!r}: {result.message}")
            assert isinstance(result, list)
            self._ahead, self._ahead_of = result, number
        made = self._ahead[number - self._ahead_of]
        if isinstance(made, str):
            self._unfit = made
            return None
        entry, answer = made
        return Example(f"{entry['question']}{self.prompt_suffix}", answer, {"entry": entry})

    def canonical(self, example: Example) -> str:
        """Returns the question without the suffix."""
        return str(example.meta["entry"]["question"])

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Returns the components ``score``, ``solved``, ``failed`` and ``reward``, each in [0, 1].

        Raises:
            WorkerError: the scorer tried to execute text.
        """
        return self.score_many([completion], [example])[0]

    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores several completions, as ``score``; they are shared out among the workers."""
        items: list[Request] = [
            ("score", completion.strip() if isinstance(completion, str) else "", example.meta["entry"])
            for completion, example in zip(completions, examples, strict=True)
        ]
        results = self._pool().run(items, self.timeout)
        return [self._scores(result, example) for result, example in zip(results, examples, strict=True)]

    def _scores(self, result: list[Made] | float | Failed, example: Example) -> dict[str, float]:
        score, failed = 0.0, isinstance(result, Failed)
        if isinstance(result, Failed):
            if result.kind == "error":
                raise WorkerError(f"ReasoningGym: {result.message}")
            self.failures.note(f"ReasoningGym({self.dataset!r})", result, prompt_text(example.prompt))
        else:
            assert isinstance(result, float)
            score = float(result == 1) if self.dataset in FULL_MARKS_ONLY else result
        values = {"score": score, "solved": float(score == 1), "failed": float(failed)}
        return {**values, "reward": weighted_mean(values, self.weights)}

    def _pool(self) -> GymPool:
        return shared(functools.partial(Gym, self.dataset, self.seed, self.config), self.workers, MEMORY)

    def _shortage(self, split: str) -> str:
        unfit = f"; the last entry that was left out: {self._unfit}" if self._unfit else ""
        return super()._shortage(split) + unfit


@runtime_checkable
class _Validated(Protocol):
    """What most configurations of reasoning-gym have; they share no base class that would say so."""

    def validate(self) -> None: ...


def _checked_name(task: ReasoningGym, name: str) -> str:
    from reasoning_gym.factory import DATASETS

    check(isinstance(name, str), task, "dataset", name, "a text")
    usable = set(DATASETS) - EVALUATES_TEXT - PAYS_CONSTANTS.keys()
    if name in EVALUATES_TEXT:
        instead = {"countdown": "; use the task Countdown", "composite": "; use the task Mixture"}.get(name, "")
        why = f"its scorer evaluates text, which could run what a model wrote{instead}"
        refuse_value(task, "dataset", f"{name!r} is refused: {why}")
    if name in PAYS_CONSTANTS:
        refuse_value(task, "dataset", f"{name!r} is refused: its scorer gives {PAYS_CONSTANTS[name]}")
    if name not in usable:
        refuse_value(task, "dataset", f"reasoning-gym has no dataset {name!r}; {nearest(name, usable)}", joint=": ")
    return name


def _checked_config(task: ReasoningGym, name: str, config: dict[str, Any] | None) -> dict[str, Any]:
    from reasoning_gym.factory import DATASETS

    check(config is None or isinstance(config, dict), task, "config", config, "a dict")
    config = copy.deepcopy(config or {})
    cls = DATASETS[name][1]
    known = {field.name for field in dataclasses.fields(cls)} - {"seed", "size"}
    for parameter in config:
        if parameter in ("seed", "size"):
            own = "seed" if parameter == "seed" else "num_pretrain, num_train and num_heldout"
            refuse_value(task, "config", f"must not have {parameter!r}: set the task's own {own}")
        if parameter not in known:
            refuse_value(task, "config", f"{name} has no {parameter!r}; {nearest(str(parameter), known)}", joint=": ")
    try:
        filled = cls(**copy.deepcopy(config), seed=0, size=CHUNK)
        if isinstance(filled, _Validated):
            filled.validate()
    except Exception as error:  # mostly assertions
        refuse_value(task, "config", f"of {name}: {error or type(error).__name__}, got {config!r}")
    return config
