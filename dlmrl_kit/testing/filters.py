"""Checks of rollout filters: whole groups are kept or dropped, by what they got, in the order they were in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDict, TensorDictBase

from dlmrl_kit.core.keys import GROUP, REWARD
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.declarations import DRAW, ORDER
from dlmrl_kit.testing.running import equal, flat, inputs
from dlmrl_kit.testing.world import GROUPS, World, world

ROW = "row"
REWARDS: tuple[tuple[float, ...], ...] = (
    (1.0,) * 8,
    (0.0,) * 8,
    (1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0),
    (0.25, 0.5, 0.25, 1.0, 0.5, 0.75, 0.5, 1.0),
    (0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.25),
)
"""Rewards beside the world's own: all right, all wrong, groups that agree and groups that do not."""


def _cases(name: str, component: Filter) -> Iterator[tuple[TensorDict, World]]:
    """Rollouts with different rewards; ``row`` numbers the samples."""
    for rewards in (None, *REWARDS):
        w = world()
        given = inputs(name, component, w).set(ROW, torch.arange(len(GROUPS)))
        if rewards is not None and REWARD in flat(given):
            given.set(REWARD, torch.tensor(rewards, dtype=w.dtype))
        yield given, w


def kept_rows(name: str, component: Filter, given: TensorDictBase, w: World) -> list[int]:
    """Returns the rows that the filter keeps, in the order in which it returns them."""
    fix = "return tensordict[self.keep(tensordict)] from forward, with keep(tensordict) -> bool [B]"
    with attempt(name, "run on a rollout", fix):
        found = w.call(component, given.copy())
        return [int(row) for row in found[ROW]]


def check_keeps_samples(name: str, component: Filter) -> None:
    """It returns samples that came in, each once, in their order, with everything they hold."""
    for given, w in _cases(name, component):
        rows = kept_rows(name, component, given, w)
        fix = "choose with a bool mask [B], tensordict[mask], and change nothing in what is kept"
        if sorted(set(rows)) != rows:
            fail(name, f"returns the samples {rows}: not each once and in their order", fix)
        found = flat(w.call(component, given.copy()))
        for key, value in flat(given).items():
            if key not in found or not equal(found[key], value[rows]):
                fail(name, f"returns samples with another {key!r} than they came with", fix)


def check_whole_groups(name: str, component: Filter) -> None:
    """All samples of a prompt are kept, or none: an advantage compares them."""
    for given, w in _cases(name, component):
        rows = kept_rows(name, component, given, w)
        groups = {GROUPS[row] for row in rows}
        cut = [row for row, group in enumerate(GROUPS) if group in groups and row not in rows]
        if cut:
            problem = (
                f"keeps part of a group: not sample {cut[0]}, whose group {GROUPS[cut[0]]} has others that it keeps"
            )
            fail(name, problem, "decide by group (core.trajectory.group_mean, group_max) and keep or drop all of it")


def check_keeps_by_content(name: str, component: Filter) -> None:
    """What it keeps depends on no id and no place in the batch."""
    order = torch.tensor(ORDER)
    for given, w in _cases(name, component):
        straight = kept_rows(name, component, given, w)
        permuted = kept_rows(name, component, given[order], w)
        if sorted(permuted) != sorted(straight):
            problem = f"keeps samples {straight} in one order of the batch and {sorted(permuted)} in another"
            fail(name, problem, "treat samples by their group and rewards, never by their place in the batch")
        renamed = given.clone()
        if GROUP in flat(given):
            renamed.set(GROUP, 1000 - 13 * given[GROUP])
        if (other := kept_rows(name, component, renamed, w)) != straight:
            problem = f"keeps samples {straight}, and {other} when the groups have other ids"
            fail(name, problem, "ids of groups are names, not indices; compare them for equality only")


def check_decides_again(name: str, component: Filter) -> None:
    """The same rollout and the same seeds keep the same samples, also the second time."""
    for given, w in _cases(name, component):
        first, second = (kept_rows(name, component, given, w) for _ in range(2))
        if first != second:
            fail(name, f"keeps samples {first} the first time and {second} the second", f"{DRAW}; keep no state")


CHECKS = (check_keeps_samples, check_whole_groups, check_keeps_by_content, check_decides_again)
