"""The scorer scores ahead, and is the only one to use its task."""

from __future__ import annotations

import threading

import pytest
import torch
from support.policies import tiny_policy
from support.watched_task import SECONDS, Watched
from torch import Tensor

from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.tasks.mixture import Mixture
from dlmrl_kit.tasks.sudoku import Sudoku4x4


@pytest.fixture
def ids() -> Tensor:
    return torch.tensor([[4, 5, 6], [5, 5, 4], [4, 5, 6], [6, 4, 2]])


EXAMPLE = torch.tensor([0, 1, 0, 2])


def test_a_scorer_scores_ahead_what_it_is_asked_for_later_and_once(ids: Tensor) -> None:
    policy, task, plain = tiny_policy(characters="1234_:"), Watched(), Watched()
    scorer = Scorer(task, "train", policy)
    with scorer.ahead():
        scorer.begin(ids, EXAMPLE)
        scorer.begin(ids[:2], EXAMPLE[:2])  # nothing new
        scorer.begin(ids[1:], EXAMPLE[1:] + 1)
        found = scorer.components(ids, EXAMPLE)
        assert task.threads == {"dlmrl-background"}
        more = scorer.components(ids, EXAMPLE + 2)
        assert task.threads == {"dlmrl-background", threading.main_thread().name}  # what was not begun is done here
    assert task.calls == 3
    other = Scorer(plain, "train", policy)
    assert found == other.components(ids, EXAMPLE)
    assert more == other.components(ids, EXAMPLE + 2)
    assert scorer.components(ids[1:], EXAMPLE[1:] + 1) == other.components(ids[1:], EXAMPLE[1:] + 1)
    assert task.calls == 3
    scorer.forget()
    assert scorer.components(ids, EXAMPLE) == found
    assert task.calls == 4


def test_the_task_is_free_at_the_end_of_the_context_and_for_its_examples(ids: Tensor) -> None:
    started, go = threading.Event(), threading.Event()

    def during(number: int) -> None:
        started.set()
        assert go.wait(SECONDS)

    task = Watched(during)
    scorer = Scorer(task, "train", tiny_policy(characters="1234_:"))
    with scorer.ahead():
        scorer.begin(ids, EXAMPLE)
        assert started.wait(SECONDS)
        threading.Timer(0.05, go.set).start()
        assert len(scorer.examples(EXAMPLE)) == 4  # waits: ``Watched`` would refuse a second thread
        assert task.events == ["begin 1", "end 1"]
        scorer.begin(ids, EXAMPLE + 1)
    assert task.events == ["begin 1", "end 1", "begin 2", "end 2"]


@pytest.mark.parametrize("ask", [True, False])
def test_errors_of_the_task_are_raised_in_the_main_thread(ask: bool, ids: Tensor) -> None:
    def fail(number: int) -> None:
        raise ValueError(f"no score {number}")

    task = Watched(fail)
    scorer = Scorer(task, "train", tiny_policy(characters="1234_:"))
    with pytest.raises(ValueError, match="no score 1"), scorer.ahead():  # noqa: PT012
        scorer.begin(ids, EXAMPLE)
        scorer.begin(ids, EXAMPLE + 1)
        if ask:
            scorer(ids, EXAMPLE)
            raise AssertionError("not reached")
    task.during = lambda number: None
    assert len(scorer.components(ids, EXAMPLE)) == 4  # nothing is left of it


def test_tasks_of_the_main_thread_are_called_there(ids: Tensor) -> None:
    task = Watched()
    task.main_thread = True
    for holder in (task, Mixture([Sudoku4x4(4, 8, num_train=7), task])):
        scorer = Scorer(holder, "train", tiny_policy(characters="1234_:"))
        calls = task.calls
        with scorer.ahead():
            scorer.begin(ids, EXAMPLE)
        assert task.calls == calls
        scorer.components(ids, EXAMPLE)
        assert task.calls > calls
        assert task.threads == {threading.main_thread().name}
    assert not Mixture([Sudoku4x4(4, 8, num_train=7), Watched()]).main_thread
