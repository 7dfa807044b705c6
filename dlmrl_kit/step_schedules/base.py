"""The interface of step schedules: how many positions each denoising step of a block commits.

The number of positions that are done says which step comes next, so that a sampler with a schedule can go on from any
state. A step that commits nothing would leave the state as it is, with probability 1: it is not taken, costs no forward
pass and has no place in the trajectory. What a published generator commits after such a step is committed without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from dlmrl_kit.core.component import Resizable, Sizes, rebuilt
from dlmrl_kit.core.promises import Given, promises, shown
from dlmrl_kit.core.validate import clipped


def _numbers(result: object, given: Given) -> str:
    positions = given["positions"]
    whole = isinstance(result, list) and all(isinstance(number, int) and number >= 0 for number in result)
    if not whole or sum(result) != positions:  # type: ignore[call-overload]
        got = repr(result) if isinstance(result, list) else shown(result)
        return f"{clipped(got)}; it should be a list of whole numbers, at least 0, {positions} in sum"
    return ""


class StepSchedule(Resizable, ABC):
    """Base class of step schedules. Subclasses implement ``numbers``.

    Attributes:
        steps: denoising steps of a block as published, those that commit nothing included; at least 1.
    """

    steps: int

    @abstractmethod
    @promises(_numbers)
    def numbers(self, positions: int) -> list[int]:
        """Returns how many of a block's ``positions`` each of its steps commits: at least 0, ``positions`` in sum."""

    def levels(self, positions: int) -> list[int]:
        """Returns how many positions of a block are committed after each step that commits any: from above 0 up."""
        done, found = 0, []
        for number in self.numbers(positions):
            if number > 0:
                done += number
                found.append(done)
        return found

    def resized(self, before: Sizes, after: Sizes) -> StepSchedule:
        """Returns the schedule of as many steps as ``after.tokens_per_step`` positions per step would take."""
        return rebuilt(self, steps=-(-after.block_length // after.tokens_per_step))
