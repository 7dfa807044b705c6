"""The recipe of trees trains."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from support.runs import collect, new_run, prepared


def test_the_recipe_trains(tmp_path: Path) -> None:
    sets = ["Tree.branching = 2", "Trainer.group_size = 4", "Trainer.minibatches = 2", "Trainer.inner_iterations = 2"]
    run = new_run(tmp_path, "d_treerpo", [*sets, "Sudoku4x4.format_weight = 1.0", "Trainer.learning_rate = 0.001"])
    assert run.update.gradient.whole_groups
    for update in range(2):
        trajectory = collect(run, update).kept
        assert trajectory["progress"].tolist() == [update / 4] * 8
        assert (trajectory["selected", "weight"].sum(), trajectory["selected", "weight"].shape[1]) == (2 * (2 + 4), 2)
        generator = torch.Generator().manual_seed(update)  # the tiny denoiser is seldom right
        trajectory["reward"] = torch.rand(8, generator=generator)
        trajectory.del_(("selected", "advantage"))
        run.algorithm.advantage(trajectory)
        metrics = run.update.learn(prepared(run.update, trajectory), update)
        assert metrics["skipped"] == 0
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["self_distillation"] > 0
        assert (metrics["loss_self_distillation"] > 0) == (update > 0)  # lambda starts at 0
        assert metrics["kl"] >= 0
