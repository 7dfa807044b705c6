"""Checks of advantages: groups are compared by their members, whatever their ids."""

from __future__ import annotations

import torch

from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.core.keys import GROUP, REWARD, SELECTED_REWARD
from dlmrl_kit.testing.core import fail
from dlmrl_kit.testing.running import different, flat, inputs, run
from dlmrl_kit.testing.world import world


def check_group_names(name: str, component: Advantage) -> None:
    """Renaming the groups changes nothing: ids are names, not indices, and groups may be of any size."""
    w = world()
    given = inputs(name, component, w)
    if GROUP not in flat(given):
        return
    renamed = given.clone().set(GROUP, 1000 - 13 * given[GROUP])
    if (key := different(run(name, component, given.clone(), w), run(name, component, renamed, w), 1e-5)) is not None:
        fix = "compare samples with equal ids (core.trajectory.group_mean, group_sum); do not reshape to [groups, G]"
        fail(name, f"writes other values of {key!r} when the groups have other ids", fix)


def check_equal_returns(name: str, component: Advantage) -> None:
    """Where all rewards are equal, a spread of 0 makes no NaN."""
    w = world()
    given = inputs(name, component, w)
    for reward in (REWARD, SELECTED_REWARD):
        if reward in flat(given):
            given.set(reward, torch.full_like(given[reward], 0.5))
    for key, value in run(name, component, given, w).items():
        if not value.isfinite().all():
            fix = "add a small number to a spread before dividing by it"
            fail(name, f"writes {key!r} that is not finite where all rewards are equal", fix)


CHECKS = (check_group_names, check_equal_returns)
