"""Even steps (LLaDA, arXiv 2502.09992, and SDAR, arXiv 2510.06303): as equal numbers as possible, larger ones first.

k_t = floor(n / steps) + [t < n mod steps],    t = 0, ..., steps - 1, for a block of n positions
"""

from __future__ import annotations

from dataclasses import dataclass

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.step_schedules.base import StepSchedule


@register("step_schedule", paper="arXiv 2502.09992")
@dataclass(frozen=True)
class EvenSteps(StepSchedule):
    """Spreads a block's positions evenly over its steps; the first ones commit one more if they do not divide evenly.

    Args:
        steps: denoising steps of a block, at least 1; with more steps than positions, one position per step.

    Raises:
        ValueError: a value out of range.
    """

    steps: int

    def __post_init__(self) -> None:
        check(self.steps >= 1, self, "steps", self.steps, "at least 1")

    def numbers(self, positions: int) -> list[int]:
        """Returns the rounded up share in the first steps, the rounded down one in the others."""
        share, more = divmod(positions, self.steps)
        return [share + (step < more) for step in range(self.steps)]
