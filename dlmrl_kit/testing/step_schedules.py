"""Checks of step schedules: numbers that add up to the block, in any size, and copies that do the same."""

from __future__ import annotations

import copy
import pickle

from dlmrl_kit.core.component import Sizes
from dlmrl_kit.step_schedules.base import StepSchedule
from dlmrl_kit.testing.core import attempt, fail

POSITIONS = (1, 2, 3, 4, 7, 16, 33)
SMALL = Sizes(length=4, steps=4, block_length=4, tokens_per_step=2, vocab_size=3)


def _numbers(name: str, component: StepSchedule, positions: int) -> list[int]:
    fix = "return a list of whole numbers, one for each of the block's steps"
    with attempt(name, f"asked for the numbers of a block of {positions} positions", fix):
        numbers = component.numbers(positions)
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        fail(name, f"gives {numbers!r} for {positions} positions", fix)
    return numbers


def check_numbers(name: str, component: StepSchedule) -> None:
    """The steps of a block commit all of its positions, none of them twice, and the same ones when asked again."""
    for positions in POSITIONS:
        numbers = _numbers(name, component, positions)
        if min(numbers) < 0 or sum(numbers) != positions:
            problem = f"commits {numbers} of {positions} positions"
            fail(name, problem, "let the numbers be at least 0 and add up to the positions of the block")
        if _numbers(name, component, positions) != numbers:
            fail(name, "gives other numbers the second time", "make them a function of the positions alone")


def check_schedule_resized(name: str, component: StepSchedule) -> None:
    """Resized for a small block, it is a schedule of its class that does not change when it is resized again."""
    fix = "def resized(self, before, after): return rebuilt(self, steps=...)"
    large = Sizes(length=64, steps=64, block_length=16, tokens_per_step=max(_numbers(name, component, 16)))
    with attempt(name, "resized for a small block", fix):
        small = component.resized(large, SMALL)
        again = small.resized(SMALL, SMALL)
    if not isinstance(small, type(component)) or small.numbers(4) != again.numbers(4):
        fail(name, "becomes another schedule each time it is resized", fix)


def check_step_schedule_copies(name: str, component: StepSchedule) -> None:
    """Pickle and deepcopy give schedules with the same numbers."""
    for how, twin in (("deepcopy", copy.deepcopy(component)), ("pickle", pickle.loads(pickle.dumps(component)))):
        if twin.numbers(7) != component.numbers(7):
            fail(name, f"has other numbers after {how}", "keep its parameters in ordinary attributes")


CHECKS = (check_numbers, check_schedule_resized, check_step_schedule_copies)
