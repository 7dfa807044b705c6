"""What is kept of rollouts: means by step against sums by hand, samples, and files that a resumed run goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import recipe, stopped
from tensordict import TensorDict

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.keys import (
    SELECTED_ADVANTAGE,
    SELECTED_END,
    SELECTED_REWARD,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_ENTROPY,
    STEP_REWARD,
    STEP_VALID,
)
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.training import resume, train
from dlmrl_kit.training.rollout_record import means_by_step, sums_by_step
from dlmrl_kit.training.update import Rollout
from dlmrl_kit.training.update_lines import add_lines, cut_lines, read_lines


def rollout(**more: Any) -> Rollout:
    """Two samples of three steps, of which the second has two; the first trains steps 0 and 2, the second step 1."""
    nan = float("nan")
    everything = TensorDict(
        {
            STEP_VALID: torch.tensor([[True, True, True], [True, True, False]]),
            STEP_ENTROPY: torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, nan]]),
        },
        [2],
    )
    kept = everything.copy()
    kept.set(SELECTED_STEP, torch.tensor([[0, 2], [1, 0]]))
    kept.set(SELECTED_WEIGHT, torch.tensor([[1.0, 0.5], [2.0, 0.0]]))
    for key, value in more.items():
        kept.set({"end": SELECTED_END, "reward": SELECTED_REWARD, "advantage": SELECTED_ADVANTAGE}[key], value)
    return Rollout(everything, kept)


def test_means_by_step() -> None:
    found = rollout(
        reward=torch.tensor([[0.5, 1.0], [0.25, 9.0]]), advantage=torch.tensor([[-0.5, 1.0], [0.25, float("nan")]])
    )
    assert means_by_step([sums_by_step(found)]) == {
        "entropy": [2.0, 3.0, 3.0],
        "selected": [0.5, 0.5, 1.0],
        "reward": [0.5, 0.25, 1.0],
        "advantage": [0.5, 0.25, 1.0],
    }


def test_rewards_of_all_steps_count_before_those_of_chosen_ones() -> None:
    found = rollout(reward=torch.full((2, 2), 9.0))
    found.kept.set(STEP_REWARD, torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]))
    assert means_by_step([sums_by_step(found)])["reward"] == [2.0, 3.0, 3.0]


def test_a_segment_covers_its_steps() -> None:
    found = rollout(end=torch.tensor([[2, 3], [3, 1]]))
    found.kept.set(STEP_VALID, torch.ones(2, 3, dtype=torch.bool))
    assert means_by_step([sums_by_step(found)])["selected"] == [0.5, 1.0, 1.0]


def test_processes_add_up_and_may_have_nothing_or_fewer_steps() -> None:
    one = sums_by_step(rollout())
    empty = rollout().everything[:0]
    none = sums_by_step(Rollout(empty, empty))
    assert none == {}
    short = {"entropy": ([5.0], [2.0])}
    assert means_by_step([one, none, short])["entropy"] == [2.25, 3.0, 3.0]
    filtered = rollout()
    assert set(sums_by_step(Rollout(filtered.everything, filtered.kept[:0]))) == {"entropy"}


def test_a_run_keeps_means_and_samples(tmp_path: Path) -> None:
    built = recipe(sets=["Trainer.updates = 2"])
    train(built, tmp_path / "run")
    metrics, task = read_metrics(tmp_path / "run"), built.build_algorithm().task
    steps = read_lines(tmp_path / "run" / "steps.jsonl")
    assert [entry["update"] for entry in steps] == [0, 1]
    for entry, (_, selected) in zip(steps, metrics["selected_steps"], strict=True):
        assert sum(entry["selected"]) == pytest.approx(selected, rel=1e-3)  # every sample has all steps
    for entry, (_, entropy) in zip(steps, metrics["entropy"], strict=True):
        assert sum(entry["entropy"]) / len(entry["entropy"]) == pytest.approx(entropy, rel=1e-3)
    samples = read_lines(tmp_path / "run" / "completions.jsonl")
    assert [sample["update"] for sample in samples] == [0] * 4 + [1] * 4
    known = {task.example("train", index).prompt: task.example("train", index).answer for index in range(7)}
    for sample in samples:
        assert sample["answer"] == known[sample["prompt"]]
        assert sample["solved"] == (sample["completion"] == sample["answer"])
        assert {"reward", "cells", "format"} < set(sample)
    assert len({sample["prompt"] for sample in samples[:4]}) == 2  # both prompts of the update


@pytest.mark.thorough
def test_a_resumed_run_has_the_files_of_a_whole_one(tmp_path: Path) -> None:
    sets = ["Trainer.checkpoint_every = 2", "Trainer.eval_every = 0"]
    train(recipe(sets=sets), tmp_path / "whole")
    stopped(lambda: train(recipe(sets=sets), tmp_path / "run"), 3)
    with (tmp_path / "run" / "completions.jsonl").open("a") as file:
        file.write('{"update": 0, "pro')
    resume(tmp_path / "run")
    for name in ("steps.jsonl", "completions.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_lines_of_anything(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    cut_lines(path, 3)  # there is nothing to cut
    entries = [{"update": number, "text": 'a\n"\u2028\ud800é'} for number in range(4)]
    add_lines(path, entries)
    with path.open("a") as file:
        file.write('[1]\n{"no": 1}\n{"update": "x"}\n\n{"update": 1')
    assert [entry["update"] for entry in read_lines(path)] == [0, 1, 2, 3]
    cut_lines(path, 2)
    assert [json.loads(line)["update"] for line in path.read_text().split("\n")[:-1]] == [0, 1]
    with pytest.raises(FileError, match=r"cannot write .*gone"):
        add_lines(tmp_path / "gone" / "x.jsonl", entries)
