r"""Steps of linear time (Dream, arXiv 2508.15487): each step commits the share that the forward process would unmask.

    k_i = floor(m_i (1 - t_{i+1} / t_i)),    t_i = 1 - i (1 - eps) / steps,    k = m in the last step

for the m_i positions that are masked before step i. With as many steps as positions this is 0, 1, 1, ..., 1, 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.step_schedules.base import StepSchedule


@register("step_schedule", paper="arXiv 2508.15487")
@dataclass(frozen=True)
class LinearTimeSteps(StepSchedule):
    """Commits in each step the share of the masked positions that its interval of time has; the last step the rest.

    Args:
        steps: intervals of time in a block, at least 1. Steps in which the share is less than a position are left out.
        eps: the time at which the last interval ends, in (0, 1).

    Raises:
        ValueError: a value out of range.
    """

    steps: int
    eps: float = 1e-3

    def __post_init__(self) -> None:
        check(self.steps >= 1, self, "steps", self.steps, "at least 1")
        check(0 < self.eps < 1, self, "eps", self.eps, "in (0, 1)")

    def numbers(self, positions: int) -> list[int]:
        """Returns the shares rounded down, in float32, where the release rounds them too."""
        time = torch.linspace(1, self.eps, self.steps + 1, dtype=torch.float32, device="cpu")
        share = (1 - time[1:] / time[:-1])[: self.steps - 1]
        masked, found = positions, []
        for part in share:
            found.append(int(masked * part))
            masked -= found[-1]
        return [*found, masked]
