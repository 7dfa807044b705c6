"""Rewards in the background: the model goes on while completions are scored, and nothing else is different."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from core import tiny_policy
from torch import Tensor
from training_helpers import build, metric_rows, new_run, outcome, recipe

from dlmrl_kit.rollout.rewards import Background, Scorer
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.json_lines import JsonLines
from dlmrl_kit.tasks.mixture import Mixture
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training import loop
from dlmrl_kit.training.loop import Run, resume, train

SECONDS = 20.0
"""How long the tests wait for what must happen, before they fail."""
KL = "regulariser=KLK3"


class Watched(Sudoku4x4):
    """Writes down where and when it scores, and refuses to be called from two threads at once.

    ``during``: called in every ``score_many``, between its begin and its end.
    """

    def __init__(self, during: Callable[[int], None] = lambda number: None) -> None:
        super().__init__(4, 8, num_pretrain=0, num_train=7, num_heldout=5)
        self.events: list[str] = []
        self.threads: set[str] = set()
        self.during = during
        self.busy = threading.Lock()
        self.calls = 0

    def example(self, split: str, index: Any) -> Example:
        with self.alone():
            return super().example(split, index)

    def score_many(self, completions: Any, examples: Any) -> list[dict[str, float]]:
        with self.alone():
            self.threads.add(threading.current_thread().name)
            self.calls += 1
            number = self.calls
            self.events.append(f"begin {number}")
            self.during(number)
            found = super().score_many(completions, examples)
            self.events.append(f"end {number}")
            return found

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        assert self.busy.acquire(blocking=False), "two threads in a task at once"
        try:
            yield
        finally:
            self.busy.release()


def watched_run(folder: Path, task: Watched, uses: tuple[str, ...] = (), **trainer: Any) -> Run:
    """A run on a watched task; its forwards are among the task's events."""
    run = new_run(folder, uses=uses, sets=[f"Trainer.{name} = {value}" for name, value in trainer.items()])
    run.algorithm.task = run.scorer.task = task
    original = run.policy.features

    def features(*given: Any) -> Tensor:
        task.events.append("reference" if run.policy.model is run.policy._reference else "forward")
        return original(*given)

    run.policy.features = features  # type: ignore[assignment]
    return run


def in_turn(patch: pytest.MonkeyPatch) -> None:
    """Everything is scored when it is asked for."""
    patch.setattr(Scorer, "ahead", lambda self: contextlib.nullcontext())


# ------------------------------------------------------------------------------------------- the thread


def test_jobs_run_in_one_thread_in_their_order() -> None:
    jobs = Background()
    seen: list[int] = []

    def job(number: int) -> int:
        seen.append(number)
        return threading.get_ident()

    futures = [jobs.submit(functools.partial(job, number)) for number in range(20)]
    (thread,) = {future.result(SECONDS) for future in futures}
    assert seen == list(range(20))
    assert thread != threading.get_ident()
    assert jobs.close(SECONDS)


def test_what_a_job_raises_is_raised_by_its_future_and_the_others_run() -> None:
    jobs = Background()

    def fail(error: BaseException) -> None:
        raise error

    for error in (ValueError("wrong"), SystemExit(3)):
        bad, good = jobs.submit(functools.partial(fail, error)), jobs.submit(lambda: 1)
        with pytest.raises(type(error)) as raised:
            bad.result(SECONDS)
        assert raised.value is error
        assert good.result(SECONDS) == 1
    jobs.close(SECONDS)


def test_dropped_jobs_do_not_run() -> None:
    jobs, started, go = Background(), threading.Event(), threading.Event()

    def wait() -> bool:
        started.set()
        return go.wait(SECONDS)

    seen: list[int] = []
    running, waiting = jobs.submit(wait), jobs.submit(functools.partial(seen.append, 1))
    assert started.wait(SECONDS)
    jobs.drop()
    assert not jobs.close(0)
    go.set()
    assert jobs.close(SECONDS)
    assert running.result(SECONDS) is True
    assert waiting.cancelled()
    assert seen == []


# ------------------------------------------------------------------------------------------- the scorer


@pytest.fixture
def ids() -> Tensor:
    return torch.tensor([[4, 5, 6], [5, 5, 4], [4, 5, 6], [6, 4, 2]])


EXAMPLE = torch.tensor([0, 1, 0, 2])


def test_a_scorer_scores_ahead_what_it_is_asked_for_later_and_once(ids: Tensor) -> None:
    policy, task, plain = tiny_policy(characters="1234_:"), Watched(), Watched()
    scorer = Scorer(task, "train", policy)
    with scorer.ahead() as submit:
        assert submit is not None
        submit(ids, EXAMPLE)
        submit(ids[:2], EXAMPLE[:2])  # nothing new
        submit(ids[1:], EXAMPLE[1:] + 1)
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


def test_the_task_is_free_at_the_end_of_the_context_and_for_its_puzzles(ids: Tensor) -> None:
    started, go = threading.Event(), threading.Event()

    def during(number: int) -> None:
        started.set()
        assert go.wait(SECONDS)

    task = Watched(during)
    scorer = Scorer(task, "train", tiny_policy(characters="1234_:"))
    with scorer.ahead() as submit:
        assert submit is not None
        submit(ids, EXAMPLE)
        assert started.wait(SECONDS)
        threading.Timer(0.05, go.set).start()
        assert len(scorer.examples(EXAMPLE)) == 4  # waits: ``Watched`` would refuse a second thread
        assert task.events == ["begin 1", "end 1"]
        submit(ids, EXAMPLE + 1)
    assert task.events == ["begin 1", "end 1", "begin 2", "end 2"]


@pytest.mark.parametrize("ask", [True, False])
def test_errors_of_the_task_are_raised_in_the_main_thread(ask: bool, ids: Tensor) -> None:
    def fail(number: int) -> None:
        raise ValueError(f"no score {number}")

    task = Watched(fail)
    scorer = Scorer(task, "train", tiny_policy(characters="1234_:"))
    with pytest.raises(ValueError, match="no score 1"), scorer.ahead() as submit:  # noqa: PT012
        assert submit is not None
        submit(ids, EXAMPLE)
        submit(ids, EXAMPLE + 1)
        if ask:
            scorer(ids, EXAMPLE)
            raise AssertionError("not reached")
    task.during = lambda number: None
    assert len(scorer.components(ids, EXAMPLE)) == 4  # nothing is left of it


def test_tasks_of_the_main_thread_are_called_there(ids: Tensor) -> None:
    task = Watched()
    task.main_thread = True
    for holder in (task, Mixture([Sudoku4x4(4, 8, num_train=7), task])):
        with Scorer(holder, "train", tiny_policy()).ahead() as submit:
            assert submit is None
    assert not Mixture([Sudoku4x4(4, 8, num_train=7), Watched()]).main_thread


# ------------------------------------------------------------------------------------------- the rollout


def test_a_piece_is_scored_while_the_next_one_is_sampled(tmp_path: Path) -> None:
    sampled, waits = threading.Event(), threading.Event()

    def during(number: int) -> None:
        if number == 1:  # without overlap there is no forward before this returns
            task.events.append("waits")
            sampled.clear()
            waits.set()
            assert sampled.wait(SECONDS), "nothing was sampled meanwhile"

    task = Watched(during)
    run = watched_run(tmp_path, task, rollout_batch_size=3)
    original = run.policy.features

    def features(*given: Any) -> Tensor:
        if run.scorer._begun:  # the thread may be slow to begin
            assert waits.wait(SECONDS)
        found = original(*given)
        sampled.set()
        return found

    run.policy.features = features  # type: ignore[assignment]
    trajectory = run.collect(0).kept
    begin, end = task.events.index("waits"), task.events.index("end 1")
    assert "forward" in task.events[begin:end]
    assert task.threads == {"dlmrl-background"}
    assert torch.equal(trajectory["reward"], run.scorer(trajectory["completion_ids"], trajectory["example"]))


def test_reference_log_probabilities_are_computed_while_rewards_are(tmp_path: Path) -> None:
    scored, begun = threading.Event(), threading.Event()

    def during(number: int) -> None:
        begun.set()
        assert scored.wait(SECONDS), "no likelihood was computed meanwhile"

    task = Watched(during)
    run = watched_run(tmp_path, task, (KL,))
    original, advantage = run.updater.score, run.algorithm.advantage.forward

    def score(trajectory: Any) -> Any:
        assert begun.wait(SECONDS), "nothing is being scored"
        found = original(trajectory)
        assert ("selected", "reward") not in trajectory.keys(True)
        task.events.append("likelihoods")
        scored.set()
        return found

    def forward(*given: Any) -> Any:
        task.events.append("advantages")
        return advantage(*given)

    run.updater.score = score  # type: ignore[method-assign]
    run.algorithm.advantage.forward = forward
    rollout = run.collect(0, run._score_early)
    assert rollout.scored
    known = rollout.kept.keys(True)
    assert {("selected", "ref_log_prob"), ("selected", "reward"), ("selected", "advantage")} <= {*known}
    order = [event for event in task.events if event != "forward"]
    assert order.index("begin 1") < order.index("likelihoods") < order.index("end 1")
    assert "reference" in order[: order.index("likelihoods")]
    assert order[-1] == "advantages"
    assert order.count("begin 2") == order.count("end 2") == 1  # final and one-step completions


CASES: dict[str, tuple[str, list[str], list[str]]] = {
    "recorded and reference": ("egspo_sa", [KL], ["Trainer.rollout_batch_size = 3"]),
    "masks drawn anew": (
        "egspo",
        ["likelihood=MeanField", "selector=WholeSequence", KL, "advantage=GroupMean"],
        ["MeanField.prompt_mask_share = 0.5", "MeanField.redraw = True", "Trainer.inner_iterations = 2"],
    ),
    "rewards before the selection": ("mdpo", [], []),
    "filter": ("egspo_sa", ["filter=DropEqualRewards", KL], ["Trainer.rollout_batch_size = 3"]),
    "value model": ("tracerl_value", ["filter=none"], []),
    "restarts": ("egspo", ["advantage=MonteCarlo"], []),
    "tree": ("d_treerpo", [], ["Trainer.rollout_batch_size = 4"]),
    "half precision": ("egspo_sa", [KL], ["Trainer.precision = 'bfloat16'"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_bit_for_bit_what_it_is_without_overlap(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, uses, sets = CASES[case]
    small = recipe(name, uses=uses, sets=[*sets, "Trainer.updates = 2", "Trainer.eval_every = 0"])
    early: list[bool] = []
    original = loop.roll_out

    def roll_out(*given: Any) -> Any:
        found = original(*given)
        early.append(found.scored)
        return found

    monkeypatch.setattr(loop, "roll_out", roll_out)
    train(small, tmp_path / "ahead")
    expected = case not in ("rewards before the selection", "filter")
    assert early == [expected] * 2
    with monkeypatch.context() as patch:
        in_turn(patch)
        patch.setattr(loop, "roll_out", lambda plan, prompts, services, meanwhile: original(plan, prompts, services))
        train(small, tmp_path / "in turn")
    assert outcome(tmp_path / "ahead") == outcome(tmp_path / "in turn")
    assert metric_rows(tmp_path / "ahead")


@pytest.mark.parametrize(
    ("name", "uses", "ahead", "late", "likelihood_early"),
    [
        ("egspo_sa", [], "FinalReward SelectedReward", "FinalReward SelectedReward OneStepDenoise", True),
        ("grpo_steps", [], "FinalReward", "FinalReward {advantage}", True),
        ("egspo", ["advantage=MonteCarlo"], "FinalReward", "FinalReward MonteCarlo", True),
        (
            "mdpo",
            [],
            "FinalReward StepReward",
            "FinalReward StepReward IntermediateReward {selector} SelectedAdvantage",
            False,
        ),
        (
            "egspo_sa",
            ["filter=SuccessRange"],
            "FinalReward",
            "FinalReward SuccessRange {selector} SelectedReward {advantage}",
            False,
        ),
        ("vrpo", [], "", "", False),
    ],
)
def test_what_waits_for_rewards_follows_from_the_keys(
    name: str, uses: list[str], ahead: str, late: str, likelihood_early: bool
) -> None:
    algorithm = build(name, uses=uses)
    plan = algorithm.plan
    names = {slot: type(getattr(algorithm, slot)).__name__ for slot in ("advantage", "selector")}
    assert [type(part).__name__ for part in plan.ahead] == ahead.split()
    assert [type(part).__name__ for part in plan.late] == late.format(**names).split()
    assert plan.likelihood_early == likelihood_early
    assert [part for part in plan.rollout if part in plan.late] == list(plan.late)


# ------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("overlap", [True, False])
def test_a_failing_scorer_ends_the_run_which_goes_on_afterwards(
    overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = recipe(uses=[KL], sets=["Trainer.updates = 3", "Trainer.eval_every = 0", "Trainer.rollout_batch_size = 3"])
    train(small, tmp_path / "whole")
    collected = 0
    original, collect = Sudoku4x4.score, Run.collect

    def counted(self: Run, update: int, *given: Any) -> Any:
        nonlocal collected
        collected = update
        return collect(self, update, *given)

    def score(self: Sudoku4x4, completion: str, example: Example) -> dict[str, float]:
        if collected == 1:
            raise RuntimeError("the scorer is gone")
        return original(self, completion, example)

    with monkeypatch.context() as patch:
        patch.setattr(Sudoku4x4, "score", score)
        patch.setattr(Run, "collect", counted)
        if not overlap:
            in_turn(patch)
        with pytest.raises(RuntimeError, match=r"^the scorer is gone$"):
            train(small, tmp_path / "run")
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


REWARD = """
import time

def reward(completion, example):
    if completion:
        with open({path!r}, "w") as stream:  # until somebody reads
            stream.write("scoring")
        time.sleep(600)
    return 0.0
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_the_scoring_too(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, module = tmp_path / "pipe", f"hangs_{workers}"
    os.mkfifo(pipe)
    (tmp_path / f"{module}.py").write_text(REWARD.format(path=str(pipe)))
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}", "split": split}) + "\n" for n, split in enumerate(["train", "heldout"]))
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = new_run(tmp_path / "run", sets=["Trainer.rollout_batch_size = 2"])
    task = JsonLines(str(tmp_path / "data.jsonl"), f"{module}:reward", timeout=300.0, workers=workers)
    run.algorithm.task = run.scorer.task = task
    run.policy.eos_id = None  # no empty completions
    pieces = 0
    sampler = run.algorithm.sampler
    original = sampler.forward

    def forward(*given: Any, **named: Any) -> Any:
        nonlocal pieces
        pieces += 1
        if pieces == 2:
            assert pipe.read_text().startswith("scoring")  # the first piece is being scored
            raise KeyboardInterrupt
        return original(*given, **named)

    sampler.forward = forward
    with pytest.raises(KeyboardInterrupt):
        run.collect(0)
    for thread in threading.enumerate():
        if thread.name == "dlmrl-background":
            thread.join(SECONDS)
            assert not thread.is_alive()
    assert all(worker is None or not worker.alive() for worker in task._pool()._workers)
    assert not task.failures  # what was interrupted is no failed completion
    assert task._pool().run([("", task.example("train", 0))], SECONDS) == [{"reward": 0.0}]
