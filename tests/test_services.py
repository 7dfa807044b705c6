"""Restarts from finished states, and the public names of ``dlmrl_kit.training``."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tiny_runs import tiny_run
from torch import Tensor

from dlmrl_kit.rollout.services import Services


def test_monte_carlo_restarts_from_finished_states_give_the_reward(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, uses=["advantage=MonteCarlo"])
    seen: list[tuple[Tensor, Tensor]] = []
    original = Services.restart

    def spy(self: Services, tensordict: TensorDict, step: Tensor, n: int) -> Tensor:
        found = original(self, tensordict, step, n)
        seen.append((step, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Services, "restart", spy)
        trajectory = run.collect(0).kept
    used = trajectory["selected", "weight"] > 0
    step, rewards = seen[0]
    finished = used & (step >= trajectory["step", "valid"].sum(-1)[:, None])
    assert bool(finished.any())
    expected = trajectory["reward"][:, None, None].expand_as(rewards)
    assert torch.equal(rewards[finished], expected[finished])
    assert bool(((rewards >= 0) & (rewards <= 1)).all())


def test_the_public_names_of_training_are_functions() -> None:
    from dlmrl_kit import training

    importlib.import_module("dlmrl_kit.training.loop")
    assert all(inspect.isfunction(getattr(training, name)) for name in training.__all__)
