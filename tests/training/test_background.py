"""Rewards in the background: the model goes on while completions are scored, and nothing else is different."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import build, metric_rows, new_run, outcome, recipe
from support.watched_task import SECONDS, Watched, in_turn
from torch import Tensor

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.json_lines import JsonLines
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training import start
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.runs import resume, train
from dlmrl_kit.training.update import Rollout, Update

KL = "regulariser=KLK3"


def watched_run(folder: Path, task: Watched, uses: tuple[str, ...] = (), **trainer: Any) -> Run:
    """A run on a watched task; its forwards are among the task's events."""
    run = new_run(folder, uses=uses, sets=[f"Trainer.{name} = {value}" for name, value in trainer.items()], task=task)
    original = run.policy.features

    def features(*given: Any) -> Tensor:
        task.events.append("reference" if run.policy.model is run.policy.frozen else "forward")
        return original(*given)

    run.policy.features = features  # type: ignore[assignment]
    return run


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
    run = watched_run(tmp_path, task, ("regulariser=none",), rollout_batch_size=3)
    original = run.policy.features

    def features(*given: Any) -> Tensor:
        if run.update.scorer._begun:  # the thread may be slow to begin
            assert waits.wait(SECONDS)
        found = original(*given)
        sampled.set()
        return found

    run.policy.features = features  # type: ignore[assignment]
    trajectory = run.update.roll_out(0).kept
    begin, end = task.events.index("waits"), task.events.index("end 1")
    assert "forward" in task.events[begin:end]
    assert task.threads == {"dlmrl-background"}
    assert torch.equal(trajectory["reward"], run.update.scorer(trajectory["completion_ids"], trajectory["example"]))


def test_reference_log_probabilities_are_computed_while_rewards_are(tmp_path: Path) -> None:
    scored, begun = threading.Event(), threading.Event()

    def during(number: int) -> None:
        begun.set()
        assert scored.wait(SECONDS), "no likelihood was computed meanwhile"

    task = Watched(during)
    run = watched_run(tmp_path, task, (KL,))
    original, advantage = run.update.log_probs.add_fixed, run.algorithm.advantage.forward

    def add_fixed(trajectory: Any, *given: Any) -> Any:
        assert begun.wait(SECONDS), "nothing is being scored"
        found = original(trajectory, *given)
        assert ("selected", "reward") not in trajectory.keys(True)
        task.events.append("likelihoods")
        scored.set()
        return found

    def forward(*given: Any) -> Any:
        task.events.append("advantages")
        return advantage(*given)

    run.update.log_probs.add_fixed = add_fixed  # type: ignore[method-assign]
    run.algorithm.advantage.forward = forward
    rollout = run.update.roll_out(0)
    assert rollout.prepared
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
    "half precision": ("egspo_sa", [KL], ["Trainer.precision = 'bfloat16'"]),
}


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_a_run_is_bit_for_bit_what_it_is_without_overlap(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, uses, sets = CASES[case]
    small = recipe(name, uses=uses, sets=[*sets, "Trainer.updates = 2", "Trainer.eval_every = 0"])
    early: list[bool] = []
    original = Update.roll_out

    def roll_out(self: Update, number: int) -> Rollout:
        found = original(self, number)
        early.append(found.prepared)
        return found

    monkeypatch.setattr(Update, "roll_out", roll_out)
    train(small, tmp_path / "ahead")
    expected = case not in ("rewards before the selection", "filter")
    assert early == [expected] * 2
    early.clear()
    with monkeypatch.context() as patch:
        in_turn(patch)
        patch.setattr(start, "make_plan", lambda algorithm: replace(make_plan(algorithm), likelihood_early=False))
        train(small, tmp_path / "in turn")
    assert early == [False] * 2
    assert outcome(tmp_path / "ahead") == outcome(tmp_path / "in turn")
    assert metric_rows(tmp_path / "ahead")


@pytest.mark.parametrize(
    ("name", "uses", "announced", "with_rewards", "likelihood_early"),
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
    name: str, uses: list[str], announced: str, with_rewards: str, likelihood_early: bool
) -> None:
    algorithm = build(name, uses=uses)
    plan = make_plan(algorithm)
    names = {slot: type(getattr(algorithm, slot)).__name__ for slot in ("advantage", "selector")}
    assert [type(reward).__name__ for reward in plan.announced] == announced.split()
    assert [stage.name for stage in plan.with_rewards] == with_rewards.format(**names).split()
    assert plan.likelihood_early == likelihood_early
    late = {key for stage in plan.with_rewards for key in stage.writes}
    assert not late & {key for stage in plan.before_rewards for key in stage.reads}


# ------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.thorough
@pytest.mark.parametrize("overlap", [True, False])
def test_a_failing_scorer_ends_the_run_which_goes_on_afterwards(
    overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = recipe(uses=[KL], sets=["Trainer.updates = 3", "Trainer.eval_every = 0", "Trainer.rollout_batch_size = 3"])
    train(small, tmp_path / "whole")
    collected = 0
    original, roll_out = Sudoku4x4.score, Update.roll_out

    def counted(self: Update, number: int) -> Rollout:
        nonlocal collected
        collected = number
        return roll_out(self, number)

    def score(self: Sudoku4x4, completion: str, example: Example) -> dict[str, float]:
        if collected == 1:
            raise RuntimeError("the scorer is gone")
        return original(self, completion, example)

    with monkeypatch.context() as patch:
        patch.setattr(Sudoku4x4, "score", score)
        patch.setattr(Update, "roll_out", counted)
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
        "".join(
            json.dumps({"prompt": str(n), "split": split}) + "\n" for n, split in enumerate(["train", "heldout"], 1)
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = JsonLines(str(tmp_path / "data.jsonl"), f"{module}:reward", timeout=300.0, workers=workers)
    run = new_run(tmp_path / "run", sets=["Trainer.rollout_batch_size = 2"], task=task)
    run.policy.eos_ids = ()  # no empty completions
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
        run.update.roll_out(0)
    for thread in threading.enumerate():
        if thread.name == "dlmrl-background":
            thread.join(SECONDS)
            assert not thread.is_alive()
    assert all(worker is None or not worker.alive() for worker in task._pool()._workers)
    assert not task.failures  # what was interrupted is no failed completion
    assert task._pool().run([("", task.example("train", 0))], SECONDS) == [{"reward": 0.0}]
