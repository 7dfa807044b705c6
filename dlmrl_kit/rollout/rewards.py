"""Rewards: which completions are scored, by whom, and when.

A task scores texts; ``Scorer`` turns token ids into texts and asks it, once for equal completions, in a thread while
the model goes on. The reward components put the numbers where advantages read them: of final completions, of one-step
completions at the chosen steps, of the drafts of every step.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    EXAMPLE,
    REWARD,
    SELECTED_REWARD,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_DRAFT_IDS,
    STEP_GREEDY_IDS,
    STEP_REWARD,
    STEP_VALID,
)
from dlmrl_kit.core.phases import phase
from dlmrl_kit.core.policy import Vocabulary
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.samplers.one_step import NOT_COMPUTED
from dlmrl_kit.tasks.base import BaseTask, Example
from dlmrl_kit.tasks.reward_worker import stop_all as stop_workers

Score = Callable[[Tensor, Tensor], Tensor]
"""Rewards float32 [N] of completions int64 [N, L] for example indices int64 [N]."""


class Reward(Component, ABC):
    """Base class of the components that write rewards; the dataflow adds those that others read."""

    requires = ("score",)

    @abstractmethod
    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """What is scored: completions int64 [N, L] and their example indices int64 [N]."""


class FinalReward(Reward):
    """Reads ``completion_ids``, ``example``; writes ``reward`` [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [COMPLETION_IDS, EXAMPLE]
        self.out_keys = [REWARD]

    def forward(self, tensordict: TensorDictBase, *, score: Score) -> TensorDictBase:
        """Adds the reward of each completion."""
        return tensordict.set(REWARD, score(*self.completions(tensordict)))

    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The final ones."""
        return tensordict[COMPLETION_IDS], tensordict[EXAMPLE]


class SelectedReward(Reward):
    """Reads ``("step", "greedy_ids")``, the selection and ``example``; writes ``("selected", "reward")`` [B, K].

    The reward of x_t with every masked position filled greedily in one go (EGSPO-SA's one-step denoising value), at the
    selected steps only; 0 where the weight is.

    Raises:
        RuntimeError: a step was chosen that the selector had left out before: it is not ``nested`` as it says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [STEP_GREEDY_IDS, SELECTED_STEP, SELECTED_WEIGHT, EXAMPLE]
        self.out_keys = [SELECTED_REWARD]

    def forward(self, tensordict: TensorDictBase, *, score: Score) -> TensorDictBase:
        """Adds the reward of the one-step completion at each selected step."""
        used = tensordict[SELECTED_WEIGHT] > 0
        reward = score(*self.completions(tensordict))
        out = torch.zeros(used.shape, dtype=reward.dtype, device=used.device)
        return tensordict.set(SELECTED_REWARD, out.masked_scatter(used, reward))

    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The one-step completions at the selected steps, row by row."""
        used = tensordict[SELECTED_WEIGHT] > 0
        greedy = gather_steps(tensordict[STEP_GREEDY_IDS], tensordict[SELECTED_STEP])[used].long()
        if bool((greedy == NOT_COMPUTED).any()):
            raise RuntimeError(
                "a step was chosen that the selector had left out during the rollout: it says that it is nested, but "
                "is not"
            )
        return greedy, tensordict[EXAMPLE][:, None].expand_as(used)[used]


class StepReward(Reward):
    """Reads ``("step", "draft_ids")``, ``("step", "valid")`` and ``example``; writes ``("step", "reward")`` [B, T].

    The reward of each step's draft, x_t with every masked position filled with the step's draws (MDPO, arXiv
    2508.13148); 0 past the end of a row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [STEP_DRAFT_IDS, STEP_VALID, EXAMPLE]
        self.out_keys = [STEP_REWARD]

    def forward(self, tensordict: TensorDictBase, *, score: Score) -> TensorDictBase:
        """Adds the reward of every draft."""
        valid = tensordict[STEP_VALID]
        reward = score(*self.completions(tensordict))
        out = torch.zeros(valid.shape, dtype=reward.dtype, device=valid.device)
        return tensordict.set(STEP_REWARD, out.masked_scatter(valid, reward))

    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The drafts of the steps that happened, row by row."""
        valid = tensordict[STEP_VALID]
        drafts = tensordict[STEP_DRAFT_IDS][valid].long()
        return drafts, tensordict[EXAMPLE][:, None].expand_as(valid)[valid]


Question = tuple[int, str]
"""Example index and completion."""

DROP_SECONDS = 1.0
"""How long to wait, after an error or Ctrl-C, for the scoring that it interrupted."""

T = TypeVar("T")


class Scorer:
    """Scores completions of one split of a task; equal completions of one example are scored once until ``forget``.

    Args:
        task: its code runs in one thread at a time.
        split: its split.
        policy: for its tokenizer and end-of-text id.
    """

    def __init__(self, task: BaseTask, split: str, policy: Vocabulary) -> None:
        self.task = task
        self.split = split
        self.policy = policy
        self._found: dict[Question, dict[str, float]] = {}
        self._texts: dict[bytes, str] = {}
        self._jobs: Background[list[dict[str, float]]] | None = None
        self._begun: deque[tuple[list[Question], Future[list[dict[str, float]]]]] = deque()

    @contextlib.contextmanager
    def ahead(self) -> Iterator[None]:
        """Within the context, completions that were announced (``begin``) are scored in a thread meanwhile.

        Not for a task that scores in the main thread only (``BaseTask.main_thread``). What a scorer raises is raised by
        the next call of ``components``, ``examples`` or the scorer itself, or at the end of the context.
        """
        if self.task.main_thread:
            yield
            return
        self._jobs = jobs = Background[list[dict[str, float]]]()
        try:
            yield
            self._settle()  # the task is free for other uses now
        except BaseException:
            jobs.drop()
            for _ in range(10):  # a job that is about to ask its workers will have asked them the next time
                stop_workers()
                if jobs.close(DROP_SECONDS / 10):
                    break
            raise
        else:
            jobs.close(DROP_SECONDS)
        finally:
            self._jobs = None
            self._begun.clear()

    def begin(self, ids: Tensor, example: Tensor) -> None:
        """Begins to score completions int64 [N, L] for example indices int64 [N], if that can be done in a thread."""
        if self._jobs is None:
            return
        with phase("rewards"):
            new = self._new(self._questions(ids, example))
            if new:
                self._begun.append((new, self._jobs.submit(functools.partial(self._score, new))))

    def components(self, ids: Tensor, example: Tensor) -> list[dict[str, float]]:
        """Named reward components of completions int64 [N, L] for example indices int64 [N]."""
        with phase("rewards"):
            questions = self._questions(ids, example)
            self._settle()
            new = self._new(questions)
            if new:
                self._found.update(zip(new, self._score(new), strict=True))
            return [self._found[question] for question in questions]

    def examples(self, example: Tensor) -> list[Example]:
        """The examples of example indices int64 [N]."""
        with phase("rewards"):
            self._settle()
            return [self.task.example(self.split, index) for index in example.tolist()]

    def forget(self) -> None:
        """Drops the scores kept so far; called between updates."""
        self._found.clear()
        self._texts.clear()

    def __call__(self, ids: Tensor, example: Tensor) -> Tensor:
        """Total rewards float32 [N]."""
        rewards = [score["reward"] for score in self.components(ids, example)]
        return torch.tensor(rewards, dtype=torch.float32, device=ids.device)

    def _questions(self, ids: Tensor, example: Tensor) -> list[Question]:
        rows = [row.tobytes() for row in ids.int().cpu().numpy()]
        new = {row: number for number, row in enumerate(rows) if row not in self._texts}
        self._texts.update(zip(new, self.policy.completion_texts(ids[list(new.values())]), strict=True))
        return [(index, self._texts[row]) for index, row in zip(example.tolist(), rows, strict=True)]

    def _new(self, questions: list[Question]) -> list[Question]:
        """Those that are neither answered nor being scored, once each."""
        known = self._found.keys() | {question for begun, _ in self._begun for question in begun}
        return [question for question in dict.fromkeys(questions) if question not in known]

    def _score(self, questions: list[Question]) -> list[dict[str, float]]:
        """Asks the task."""
        examples = [self.task.example(self.split, index) for index, _ in questions]
        return self.task.score_many([text for _, text in questions], examples)

    def _settle(self) -> None:
        """Waits for what was begun."""
        while self._begun:
            questions, future = self._begun[0]
            self._found.update(zip(questions, future.result(), strict=True))
            self._begun.popleft()


class Background(Generic[T]):
    """Runs jobs in one thread, in the order in which they were given.

    A daemon: a job that hangs does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = queue.SimpleQueue()
        self._given: list[Future[T]] = []
        self._thread = threading.Thread(target=self._run, name="dlmrl-background", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queues a job; the future holds what it returns or raises."""
        future: Future[T] = Future()
        self._given.append(future)
        self._jobs.put((future, job))
        return future

    def drop(self) -> None:
        """Cancels the jobs that did not begin."""
        for future in self._given:
            future.cancel()

    def close(self, timeout: float) -> bool:
        """Ends the thread behind the jobs in its queue; waits for at most ``timeout`` seconds. Whether it has ended."""
        self._jobs.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (given := self._jobs.get()) is not None:
            future, job = given
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # SystemExit too: raised again where the result is asked for
                future.set_exception(error)
