"""From token ids to rewards: completions are decoded once, cut at the first end-of-text, and scored by the task."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from dlmrl_kit.algorithm.rewards import Submit
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.rollout.background import Background
from dlmrl_kit.tasks.base import score_many
from dlmrl_kit.tasks.reward_worker import stop_all as stop_workers


def completion_texts(policy: Policy, ids: Tensor) -> list[str]:
    """Text of completions int64 [N, L], up to the first end-of-text token, special tokens left out."""
    if len(ids) == 0:  # tokenizers cannot decode an empty batch
        return []
    if policy.eos_id is not None:
        after = (ids == policy.eos_id).long().cumsum(-1) > 0
        ids = ids.masked_fill(after, policy.eos_id)
    return policy.tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)


Question = tuple[int, str]
"""Example index and completion."""

DROP_SECONDS = 1.0
"""How long to wait, after an error or Ctrl-C, for the scoring that it interrupted."""


class Scorer:
    """Scores completions of one split of a task; equal completions of one puzzle are scored once until ``forget``.

    Args:
        task: a ``dlmrl_kit.tasks.base.Task``. Its code runs in one thread at a time.
        split: its split.
        policy: for its tokenizer and end-of-text id.
    """

    def __init__(self, task: Any, split: str, policy: Policy) -> None:
        self.task = task
        self.split = split
        self.policy = policy
        self._found: dict[Question, dict[str, float]] = {}
        self._texts: dict[bytes, str] = {}
        self._jobs: Background | None = None
        self._begun: deque[tuple[list[Question], Future[Any]]] = deque()

    @contextlib.contextmanager
    def ahead(self) -> Iterator[Submit | None]:
        """Within the context, completions can be scored in a thread while the caller goes on.

        Yields:
            ``submit(ids, example)``, which begins to score what ``components`` will be asked for; None for a task that
            scores in the main thread only (``BaseTask.main_thread``). What a scorer raises is raised by the next call
            of ``components``, ``examples`` or the scorer itself, or at the end of the context.
        """
        if getattr(self.task, "main_thread", False):
            yield None
            return
        self._jobs = jobs = Background()
        try:
            yield self.submit
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

    def submit(self, ids: Tensor, example: Tensor) -> None:
        """Begins to score completions int64 [N, L] for example indices int64 [N]; within ``ahead`` only."""
        assert self._jobs is not None
        new = self._new(self._questions(ids, example))
        if new:
            self._begun.append((new, self._jobs.submit(functools.partial(self._score, new))))

    def components(self, ids: Tensor, example: Tensor) -> list[dict[str, float]]:
        """Named reward components of completions int64 [N, L] for example indices int64 [N]."""
        questions = self._questions(ids, example)
        self._settle()
        new = self._new(questions)
        if new:
            self._found.update(zip(new, self._score(new), strict=True))
        return [self._found[question] for question in questions]

    def examples(self, example: Tensor) -> list[Any]:
        """The puzzles of example indices int64 [N]."""
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
        self._texts.update(zip(new, completion_texts(self.policy, ids[list(new.values())]), strict=True))
        return [(index, self._texts[row]) for index, row in zip(example.tolist(), rows, strict=True)]

    def _new(self, questions: list[Question]) -> list[Question]:
        """Those that are neither answered nor being scored, once each."""
        known = self._found.keys() | {question for begun, _ in self._begun for question in begun}
        return [question for question in dict.fromkeys(questions) if question not in known]

    def _score(self, questions: list[Question]) -> list[dict[str, float]]:
        """Asks the task."""
        examples = [self.task.example(self.split, index) for index, _ in questions]
        return score_many(self.task, [text for _, text in questions], examples)

    def _settle(self) -> None:
        """Waits for what was begun."""
        while self._begun:
            questions, future = self._begun[0]
            self._found.update(zip(questions, future.result(), strict=True))
            self._begun.popleft()
