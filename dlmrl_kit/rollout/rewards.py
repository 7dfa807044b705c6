"""Rewards: which completions are scored, by whom, and when.

A task scores texts. ``Scorer`` turns token ids into texts and asks the task, once for equal completions, and in a
thread while the model goes on. The reward components score final completions, one-step completions at the selected
steps, or the drafts of every step, and write the rewards to the keys that advantages read.
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

from dlmrl_kit.core.blame import named
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import ComponentError
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
from dlmrl_kit.scoring.pool import stop_all as stop_workers
from dlmrl_kit.tasks.base import BaseTask, Example, scores_fault

Score = Callable[[Tensor, Tensor], Tensor]
"""Returns rewards float32 [N] of completions int64 [N, L] for example indices int64 [N]."""


class Reward(Component, ABC):
    """Base class of the components that write rewards; ``make_plan`` adds those whose keys are read."""

    requires = ("score",)

    @abstractmethod
    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Returns what is scored: completions int64 [N, L] and their example indices int64 [N]."""


class FinalReward(Reward):
    """Reads ``completion_ids``, ``example``; writes ``reward`` [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [COMPLETION_IDS, EXAMPLE]
        self.out_keys = [REWARD]

    def forward(self, tensordict: TensorDictBase, *, score: Score) -> TensorDictBase:
        """Adds the reward of each final completion."""
        return tensordict.set(REWARD, score(*self.completions(tensordict)))

    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Returns the final completions."""
        return tensordict[COMPLETION_IDS], tensordict[EXAMPLE]


class SelectedReward(Reward):
    """Reads ``("step", "greedy_ids")``, the selection and ``example``; writes ``("selected", "reward")`` [B, K].

    It is the reward of x_t with all masked positions filled greedily at once (the one-step denoising value of EGSPO-SA,
    arXiv 2603.12554), at the selected steps only, and 0 where the weight is.

    Raises:
        RuntimeError: a selected step has no one-step completion, as the selector left it out during the rollout: it
            says that it is ``nested``, but is not.
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
        """Returns the one-step completions at the selected steps, row by row."""
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

    It is the reward of each step's draft, which is x_t with all masked positions filled with the step's draws (MDPO,
    arXiv 2508.13148), and 0 past the end of a row.
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
        """Returns the drafts of the steps that happened, row by row."""
        valid = tensordict[STEP_VALID]
        drafts = tensordict[STEP_DRAFT_IDS][valid].long()
        return drafts, tensordict[EXAMPLE][:, None].expand_as(valid)[valid]


Question = tuple[int, str]
"""Index of an example, and the text of a completion of it."""

DROP_SECONDS = 1.0
"""Seconds to wait for a scoring thread to end, also after an error or Ctrl-C."""

T = TypeVar("T")


class Scorer:
    """Scores completions for one split of a task.

    Equal completions of the same example are scored once, until ``forget``.

    Args:
        task: gives examples and scores; its code never runs in two threads at a time.
        split: of the task.
        policy: decodes token ids.
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
        """Within the context, completions given to ``begin`` are scored in a thread, while the caller goes on.

        With a task that must score in the main thread (``BaseTask.main_thread``) nothing is scored ahead. What the task
        raises in the thread is raised by the next call of ``components``, ``examples`` or the scorer itself, or at the
        end of the context.
        """
        if self.task.main_thread:
            yield
            return
        self._jobs = jobs = Background[list[dict[str, float]]]()
        try:
            yield
            self._settle()  # from here on the caller may use the task in its own thread
        except BaseException:
            jobs.drop()
            # The running job may be about to ask worker processes, which then are not there to be stopped yet.
            for _ in range(10):
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
        """Starts to score completions int64 [N, L] for example indices int64 [N]; does nothing outside of ``ahead``."""
        if self._jobs is None:
            return
        with phase("rewards"):
            new = self._new(self._questions(ids, example))
            if new:
                self._begun.append((new, self._jobs.submit(functools.partial(self._score, new))))

    def components(self, ids: Tensor, example: Tensor) -> list[dict[str, float]]:
        """Returns the reward components, by name, of completions int64 [N, L] for example indices int64 [N]."""
        with phase("rewards"):
            questions = self._questions(ids, example)
            self._settle()
            new = self._new(questions)
            if new:
                self._found.update(zip(new, self._score(new), strict=True))
            return [self._found[question] for question in questions]

    def examples(self, example: Tensor) -> list[Example]:
        """Returns the task's examples of indices int64 [N]."""
        with phase("rewards"):
            self._settle()
            return [self.task.example(self.split, index) for index in example.tolist()]

    def forget(self) -> None:
        """Drops the scores found so far, so that they do not pile up over the updates."""
        self._found.clear()
        self._texts.clear()

    def __call__(self, ids: Tensor, example: Tensor) -> Tensor:
        """Returns total rewards float32 [N] of completions int64 [N, L] for example indices int64 [N]."""
        rewards = [score["reward"] for score in self.components(ids, example)]
        return torch.tensor(rewards, dtype=torch.float32, device=ids.device)

    def _questions(self, ids: Tensor, example: Tensor) -> list[Question]:
        # Decoding is slow, so each distinct row of ids is decoded once.
        rows = [row.tobytes() for row in ids.int().cpu().numpy()]
        new = {row: number for number, row in enumerate(rows) if row not in self._texts}
        self._texts.update(zip(new, self.policy.completion_texts(ids[list(new.values())]), strict=True))
        return [(index, self._texts[row]) for index, row in zip(example.tolist(), rows, strict=True)]

    def _new(self, questions: list[Question]) -> list[Question]:
        """Returns the questions that are neither answered nor being scored, once each."""
        known = self._found.keys() | {question for begun, _ in self._begun for question in begun}
        return [question for question in dict.fromkeys(questions) if question not in known]

    def _score(self, questions: list[Question]) -> list[dict[str, float]]:
        """Asks the task, in whichever thread this is called."""
        examples = [self.task.example(self.split, index) for index, _ in questions]
        scores = self.task.score_many([text for _, text in questions], examples)
        if problem := scores_fault(scores, len(questions)):
            raise ComponentError(f"{named(type(self.task))}: score_many returned {problem}")
        return scores

    def _settle(self) -> None:
        """Waits until everything begun is scored; raises what the task raised."""
        while self._begun:
            questions, future = self._begun[0]
            self._found.update(zip(questions, future.result(), strict=True))
            self._begun.popleft()


class Background(Generic[T]):
    """Runs jobs one after another in a thread, in the order in which they were given.

    It is a daemon thread: a job that hangs does not hinder the process from ending.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = queue.SimpleQueue()
        self._given: list[Future[T]] = []
        self._thread = threading.Thread(target=self._run, name="dlmrl-background", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queues a job; the future will hold what it returns or raises."""
        future: Future[T] = Future()
        self._given.append(future)
        self._jobs.put((future, job))
        return future

    def drop(self) -> None:
        """Cancels the jobs that have not begun."""
        for future in self._given:
            future.cancel()

    def close(self, timeout: float) -> bool:
        """Ends the thread after the queued jobs; waits at most ``timeout`` seconds and returns whether it has ended."""
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
