"""Zones of confusion: the choice against a loop, short rows, and the margins that samplers record."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.runs import build, new_run, rollout
from support.selector_batches import chosen, top, trajectory
from tensordict import TensorDict

from dlmrl_kit.selectors.confusion_steps import ConfusionSteps

ROWS = [[2.0, 1.9, 0.4, 0.5, 0.45, 1.5], [0.3, 0.3], [1.0, 0.0, 1.0, 0.0]]
MARGINS = [[0.9, 0.1, 0.8, 0.2, 0.05, 0.3], [0.5, 0.4], [0.5, 0.5, 0.5, 0.5]]


def batch() -> TensorDict:
    data = trajectory(ROWS, spare=1)
    data["step", "margin"] = trajectory(MARGINS, spare=1)["step", "entropy"]
    return data


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_choice_equals_a_loop(k: int, share: float) -> None:
    by_margin = math.floor(share * k + 0.5)
    for row, margins, found in zip(ROWS, MARGINS, chosen(ConfusionSteps(k, share)(batch())), strict=True):
        change = [0.0] + [abs(b - a) for a, b in pairwise(row)]
        first = top(change, k - by_margin)
        rest = [t for t in range(len(row)) if t not in first]
        rest.sort(key=lambda t, own=margins: (own[t], t))  # type: ignore[misc]
        assert found == sorted([*first, *rest[:by_margin]])


def test_margins_are_recorded_and_decide(tmp_path: Path) -> None:
    run = new_run(tmp_path, "atpo")
    assert ("step", "margin") in run.update.plan.sampler.keys
    trajectory = rollout(run)
    valid, margin = trajectory["step", "valid"], trajectory["step", "margin"]
    assert ((margin >= 0) & (margin <= 1))[valid].all()
    assert margin[valid].std() > 0


def test_shares_out_of_range() -> None:
    with pytest.raises(Exception, match=r"ConfusionSteps\.margin_share must be in \[0, 1\], got 1\.5"):
        build("atpo", sets=["ConfusionSteps.margin_share = 1.5"])
    assert torch.equal(
        ConfusionSteps(2, 0.0)(batch())["selected", "step"], ConfusionSteps(2, 0.2)(batch())["selected", "step"]
    ), "0.2 of 2 steps rounds to none"
