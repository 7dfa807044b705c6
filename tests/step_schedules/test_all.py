"""Step schedules: their numbers, and what samplers do with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.policies import TabularPolicy
from support.published_generators import dream_counts, spread_evenly
from support.rollouts import no_prompt, roll_out
from support.seeds import seeded

from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.step_schedules.base import StepSchedule
from dlmrl_kit.step_schedules.even_steps import EvenSteps
from dlmrl_kit.step_schedules.linear_time_steps import LinearTimeSteps


@pytest.mark.parametrize(
    ("schedule", "positions", "numbers"),
    [
        (EvenSteps(5), 7, [2, 2, 1, 1, 1]),
        (EvenSteps(4), 8, [2, 2, 2, 2]),
        (EvenSteps(5), 3, [1, 1, 1, 0, 0]),
        (LinearTimeSteps(8), 8, [0, 1, 1, 1, 1, 1, 1, 2]),
        (LinearTimeSteps(4), 8, [1, 2, 2, 3]),
        (LinearTimeSteps(1), 5, [5]),
    ],
    ids=repr,
)
def test_numbers_by_hand(schedule: StepSchedule, positions: int, numbers: list[int]) -> None:
    assert schedule.numbers(positions) == numbers
    assert schedule.levels(positions) == [sum(numbers[: i + 1]) for i, number in enumerate(numbers) if number]


def test_numbers_are_those_of_the_published_loops() -> None:
    for steps in (1, 2, 3, 5, 7, 8, 32, 50, 128):
        for positions in (1, 2, 7, 8, 31, 32, 100, 128, 256):
            assert EvenSteps(steps).numbers(positions) == spread_evenly(positions, steps)
            assert LinearTimeSteps(steps).numbers(positions) == dream_counts(positions, steps)
            assert LinearTimeSteps(steps, 0.1).numbers(positions) == dream_counts(positions, steps, 0.1)


@pytest.mark.parametrize(
    ("cls", "settings", "named"),
    [
        (EvenSteps, {"steps": 0}, "steps"),
        (LinearTimeSteps, {"steps": 0}, "steps"),
        (LinearTimeSteps, {"steps": 2, "eps": 0.0}, "eps"),
        (LinearTimeSteps, {"steps": 2, "eps": 1.0}, "eps"),
    ],
)
def test_what_is_out_of_range_is_named(cls: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__}\.{named}"):
        cls(**settings)


ROWS, VOCAB = 3, 2


def sampled(sampler: Sampler) -> Any:
    return roll_out(sampler, TabularPolicy(VOCAB, sampler.completion_length), no_prompt(ROWS))


@pytest.mark.parametrize(
    ("schedule", "length", "block", "numbers"),
    [
        (LinearTimeSteps(8), 8, None, [1, 1, 1, 1, 1, 1, 2]),  # the first of the eight commits nothing
        (EvenSteps(3), 8, 4, [2, 1, 1, 2, 1, 1]),
        (EvenSteps(3), 7, 5, [2, 2, 1, 2]),  # a last block that is short
        (EvenSteps(9), 3, None, [1, 1, 1]),
    ],
    ids=repr,
)
def test_trajectories_have_the_steps_that_commit(
    schedule: StepSchedule, length: int, block: int | None, numbers: list[int]
) -> None:
    for cls in (LowConfidence, RandomOrder):
        sampler = cls(length, schedule, block)
        data = sampled(sampler)
        assert (sampler.max_steps, sampler.max_commits) == (len(numbers), max(numbers))
        assert data["step", "valid"].tolist() == [[True] * len(numbers)] * ROWS
        assert data["step", "num_committed"].tolist() == [numbers] * ROWS
        assert (data["step", "log_prob"] < 0).all()


def test_a_state_off_the_schedule_goes_on_to_its_next_level() -> None:
    """Levels 2, 4, 5, 6: with one position given the first step commits one, with three given one too."""
    policy = TabularPolicy(VOCAB, 6)
    for given, steps in ([0], [0, 0, 1, 1, 2, 3]), ([0, 1, 2], [0, 0, 0, 0, 1, 2]), ([], [0, 0, 1, 1, 2, 3]):
        state = torch.full((1, 6), policy.mask_id)
        state[:, given] = 1
        found = (
            LeftToRight(6, EvenSteps(4)).resume(seeded(no_prompt(1)), state, policy=policy)["commit_step"][0].tolist()
        )
        expected = [-1 if i in given else step for i, step in enumerate(steps)]
        assert found == expected


def test_a_step_of_a_number_and_of_an_even_schedule_are_one() -> None:
    """Where steps divide the block the schedule changes nothing, draws included."""
    for length, block, number in ((8, 4, 2), (8, None, 1), (6, 3, 3)):
        one = sampled(LowConfidence(length, number, block))
        other = sampled(LowConfidence(length, EvenSteps((block or length) // number), block))
        assert all(torch.equal(one[key], other[key]) for key in one.keys(True, True))


@pytest.mark.parametrize(
    ("per_step", "steps"), [(EvenSteps(3), [0, 1, 1, 2, 2, 3]), (2, [0, 1, 1, 2, 2, 3]), (3, [0, 1, 1, 1, 2, 2])]
)
def test_a_block_of_fewer_positions_takes_the_steps_that_begin_before_its_end(
    per_step: StepSchedule | int, steps: list[int]
) -> None:
    sampler = LowConfidence(5, per_step)
    assert [sampler.block_steps(positions) for positions in range(6)] == steps
    for positions in range(1, 6):  # a last block
        longer = LowConfidence(5 + positions, per_step, 5)
        assert longer.max_steps == steps[5] + steps[positions]
        assert sampled(longer)["step", "valid"].all()
