"""The recipe of MDPO trains, and adds nothing elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.runs import build, collect, new_run, prepared

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.training.loop import Run

DRAFT = ("step", "draft_ids")


def test_the_recipe_trains(tmp_path: Path) -> None:
    run: Run = new_run(tmp_path, "mdpo", ["Trainer.minibatches = 1", "Selector.k = 2"])
    kinds = [stage.name for stage in run.update.plan.rollout]
    order = ["LowConfidence", "FinalReward", "StepReward", "IntermediateReward", "TopAbsoluteAdvantage"]
    assert kinds == [*order, "SelectedAdvantage"]
    for update in range(2):
        trajectory = prepared(run.update, collect(run, update).kept)
        assert (trajectory["selected", "weight"] > 0).sum(-1).tolist() == [2] * 6
        metrics = run.update.learn(trajectory, update)
        assert metrics["skipped"] == 0
        assert metrics["ratio"] == pytest.approx(1)  # on-policy: one optimiser step per rollout
        assert math.isfinite(metrics["loss"])


def test_nothing_is_added_where_it_is_not_read() -> None:
    plan = make_plan(build("egspo"))
    assert not {stage.name for stage in plan.rollout} & {"StepReward", "SelectedAdvantage"}
    assert DRAFT not in plan.sampler.writes
