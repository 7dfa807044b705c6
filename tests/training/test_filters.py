"""Runs in which some updates, or all of them, have nothing to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import build, collect, new_run, outcome, recipe, weights
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.filters.drop_equal_rewards import DropEqualRewards
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.training import resume, train


class Stop(Exception):
    """A run that ends before its time."""


class Watch(RunObserver):
    """Remembers the metrics of each update; stops the run after update ``last``."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last
        self.metrics: dict[int, dict[str, float]] = {}

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        self.metrics[update] = metrics
        if update == self.last:
            raise Stop


LEARNT = {"loss", "grad_norm", "learning_rate", "loss_objective", "ratio"}
ALWAYS = {"reward", "accuracy", "entropy", "steps", "seconds", "cpu_seconds", "tokens_per_second", "kept"}


def keep_examples(monkeypatch: pytest.MonkeyPatch, examples: set[int]) -> None:
    """Makes ``DropEqualRewards`` keep the groups of these examples instead."""

    def keep(self: Filter, tensordict: TensorDictBase) -> Tensor:
        return torch.isin(tensordict["example"], torch.tensor(sorted(examples)))

    monkeypatch.setattr(DropEqualRewards, "keep", keep)


def seen(folder: Path, update: int) -> list[int]:
    """The examples of an update."""
    return collect(new_run(folder), update).everything["example"].unique().tolist()


def test_filters_run_on_rewards_before_steps_are_chosen() -> None:
    plan = make_plan(build(uses=["filter=DropEqualRewards"]))
    names = [stage.name for stage in plan.rollout]
    assert names[:3] == ["LowConfidence", "FinalReward", "DropEqualRewards"]


def test_a_run_learns_from_what_is_kept_and_skips_updates_that_keep_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (seen(tmp_path, update) for update in range(3))
    assert not set(first) & set(second)
    keep_examples(monkeypatch, {*second, third[0]})
    run = new_run(tmp_path / "run", uses=["filter=DropEqualRewards"], sets=["Trainer.updates = 3"])
    run.observer = watch = Watch()
    start, after = weights(run.policy), []
    original = type(run).step

    def update(self: Any, number: int) -> None:
        original(self, number)
        after.append(weights(self.policy))

    monkeypatch.setattr(type(run), "step", update)
    (tmp_path / "run").mkdir()
    run.run()
    kept = [watch.metrics[number]["kept"] for number in range(3)]
    assert kept == [0, 1, 0.5]
    for number, share in enumerate(kept):
        found = set(watch.metrics[number])
        assert found >= ALWAYS
        assert (LEARNT | {"selected_steps"} <= found) == (share > 0)
        assert share or not found & (LEARNT | {"selected_steps"})
    assert torch.equal(after[0], start), "an update that keeps nothing changes nothing"
    assert not torch.equal(after[1], start)
    logged = read_metrics(tmp_path / "run")
    assert [number for number, _ in logged["kept"]] == [0, 1, 2]
    assert [number for number, _ in logged["loss"]] == [1, 2]
    assert [value for _, value in logged["reward"]] == [watch.metrics[number]["reward"] for number in range(3)]


def test_metrics_of_the_rollout_count_the_samples_that_were_dropped(tmp_path: Path) -> None:
    """Reward, accuracy and entropy say how the policy does, not what it is trained on."""
    plain, filtered = new_run(tmp_path), new_run(tmp_path, uses=["filter=SuccessRange"])
    with_all, without = collect(plain, 0), collect(filtered, 0)
    assert len(without.everything) == len(with_all.kept) == 6
    assert len(without.kept) < 6
    expected = plain.update.rollout_metrics(with_all)
    found = filtered.update.rollout_metrics(without)
    for name in ("reward", "accuracy", "entropy", "steps"):
        assert found[name] == expected[name], name


@pytest.mark.thorough
def test_a_filtered_run_resumes_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped when one update had kept nothing, and when the next had kept all: as if it had not been stopped."""
    keep_examples(monkeypatch, {*seen(tmp_path, 1), seen(tmp_path, 2)[0]})
    tiny = recipe(uses=["filter=DropEqualRewards"], sets=["Trainer.schedule = 'cosine'"])
    train(tiny, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    for last in (1, 2):
        folder = tmp_path / f"stopped{last}"
        with pytest.raises(Stop):
            train(tiny, folder, observer=Watch(last))
        resume(folder)
        assert outcome(folder) == expected


def test_a_run_that_never_learns_ends_resumes_and_changes_nothing(tmp_path: Path) -> None:
    """Greedy samples of a prompt are all the same, so that no group is kept."""
    tiny = recipe(uses=["filter=DropEqualRewards"], sets=["Sampler.temperature = 0.0", "Trainer.updates = 3"])
    watch = Watch()
    result = train(tiny, tmp_path / "whole", observer=watch)
    assert [metrics["kept"] for metrics in watch.metrics.values()] == [0, 0, 0]
    assert (result.before.accuracy, result.before.reward) == (result.after.accuracy, result.after.reward)
    assert "loss" not in read_metrics(tmp_path / "whole")
    assert (tmp_path / "whole" / "curve.png").is_file()
    with pytest.raises(Stop):
        train(tiny, tmp_path / "stopped", observer=Watch(1))
    resume(tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_two_filters_apply_one_after_the_other(tmp_path: Path) -> None:
    """The second sees the samples that the first kept."""
    bindings = ["SuccessRange.low = 0.0", "SuccessRange.high = 0.4", "SuccessRange.success = 0.1"]
    both = "Algorithm.filter = [@DropEqualRewards(), @SuccessRange()]"
    # So many groups that some have equal rewards, some medium success, and some both.
    cold = ["Sudoku4x4.num_train = 48", "Trainer.prompts_per_update = 48", "Sampler.temperature = 0.3"]
    runs = [
        new_run(tmp_path, uses=["filter=DropEqualRewards"], sets=cold),
        new_run(tmp_path, uses=["filter=SuccessRange"], sets=[*cold, *bindings]),
        new_run(tmp_path, sets=[*cold, *bindings, both]),
    ]
    equal, medium, together = (set(collect(run, 0).kept["seed"].tolist()) for run in runs)
    assert together == equal & medium
    assert together < equal
    assert together < medium
    assert together


def test_groups_that_a_group_advantage_learns_from_are_counted(tmp_path: Path) -> None:
    sharp = ["Sampler.temperature = 0.2", "Trainer.group_size = 2", "Trainer.prompts_per_update = 8"]
    run = new_run(tmp_path / "run", uses=["filter=DropEqualRewards"], sets=sharp)
    run.observer = watch = Watch()
    (tmp_path / "run").mkdir()
    run.run()
    shares = [watch.metrics[number]["mixed_groups"] for number in range(2)]
    assert shares == [watch.metrics[number]["kept"] for number in range(2)]
    assert any(0 < share < 1 for share in shares)
