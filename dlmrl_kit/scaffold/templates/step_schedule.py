"""One position at first, and more in every step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from dlmrl_kit import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.step_schedules.base import StepSchedule


@register("step_schedule")
@dataclass(frozen=True)
class AcmeStepSchedule(StepSchedule):
    """Commits numbers that grow in proportion to the step, rounded.

    Args:
        steps: denoising steps of a block, at least 1.

    Raises:
        ValueError: a value out of range.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        check(self.steps >= 1, self, "steps", self.steps, "at least 1")

    def numbers(self, positions: int) -> list[int]:
        """Returns how many of a block's positions each step commits: at least 0, ``positions`` in sum."""
        whole = self.steps * (self.steps + 1) // 2
        done = [positions * step * (step + 1) // 2 // whole for step in range(self.steps + 1)]
        return [after - before for before, after in pairwise(done)]
