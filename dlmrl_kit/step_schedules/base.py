"""The interface of step schedules: how many positions each denoising step of a block commits.

The number of positions that are done says which step comes next, so that a sampler with a schedule can go on from any
state. A step that commits nothing would leave the state as it is, with probability 1: it is not taken, costs no forward
pass and has no place in the trajectory. What a published generator commits after such a step is committed without it.
"""

from __future__ import annotations

from dlmrl_kit.core.component import Resizable, Sizes, rebuilt


class StepSchedule(Resizable):
    """Base class of step schedules. Subclasses implement ``numbers``.

    Attributes:
        steps: denoising steps of a block as published, those that commit nothing included; at least 1.
    """

    steps: int

    def numbers(self, positions: int) -> list[int]:
        """Returns how many of a block's ``positions`` each of its steps commits: at least 0, ``positions`` in sum."""
        raise NotImplementedError

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
