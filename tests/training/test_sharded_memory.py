"""How weights are put together for rollouts follows from memory, unless the recipe says it."""

from __future__ import annotations

import pytest
from support.runs import build
from support.several import Pool

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.policies.sharding import Parts
from dlmrl_kit.training import sharded_memory
from dlmrl_kit.training.sharded_memory import memory_of, parts_of

FULL = "Trainer.sharding = 'full'"


def chosen(processes: Processes, sets: list[str], rooms: list[float]) -> Parts:
    """What the processes choose if they have so many bytes each."""
    algorithm = build(sets=[FULL, *sets])
    before = sharded_memory.memory_of
    sharded_memory.memory_of = lambda device: rooms[processes.rank]
    try:
        return parts_of(algorithm, make_plan(algorithm), algorithm.policy.load(), processes)
    finally:
        sharded_memory.memory_of = before


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sets", "rooms", "in_blocks"),
    [
        ([], [1e12, 1e12], False),
        ([], [1e12, 1e3], True),  # all processes choose what the smallest needs
        (["Trainer.rollout_weights = 'whole'"], [1e3, 1e3], False),
        (["Trainer.rollout_weights = 'blocks'"], [1e12, 1e12], True),
    ],
)
def test_all_processes_choose_alike(sets: list[str], rooms: list[float], in_blocks: bool, pool: Pool) -> None:
    found = pool.run(chosen, sets, rooms, worlds=(2,))[2]
    assert found == [Parts(in_blocks=in_blocks)] * 2


def test_a_process_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    device = build().policy.load().device
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    alone = memory_of(device)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_of(device) == alone / 4


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["Trainer.offload = 'cpu'"], "offload = 'cpu'.*'none' without sharding = 'full'"),
        (["Trainer.rollout_weights = 'blocks'"], "rollout_weights = 'blocks'.*'auto' without sharding = 'full'"),
    ],
)
def test_settings_that_have_no_effect_are_refused(sets: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(sets=sets)
