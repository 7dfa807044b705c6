"""Step schedules: how many positions each denoising step of a block commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.step_schedules.base import StepSchedule as StepSchedule
    from dlmrl_kit.step_schedules.even_steps import EvenSteps as EvenSteps
    from dlmrl_kit.step_schedules.linear_time_steps import LinearTimeSteps as LinearTimeSteps

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["StepSchedule"],
        "even_steps": ["EvenSteps"],
        "linear_time_steps": ["LinearTimeSteps"],
    },
)
