"""Step schedules with one mistake each."""

from __future__ import annotations

from dlmrl_kit.core.component import Sizes
from dlmrl_kit.step_schedules.base import StepSchedule


class OneStep(StepSchedule):
    """Commits a block at once; has no mistake.

    Args:
        steps: of a block.
    """

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps

    def numbers(self, positions: int) -> list[int]:
        return [positions]


class LeavesSomeOut(OneStep):
    """Rounds down, and forgets what remains.

    Arguments as ``OneStep``.
    """

    def numbers(self, positions: int) -> list[int]:
        return [positions // 2] * 2


class CountsCalls(OneStep):
    """Has a step more each time.

    Arguments as ``OneStep``.
    """

    def numbers(self, positions: int) -> list[int]:
        self.steps += 1
        return [0] * self.steps + [positions]


class KeepsDoubling(OneStep):
    """Scales by itself, and not by the sizes.

    Arguments as ``OneStep``.
    """

    def numbers(self, positions: int) -> list[int]:
        return [0] * self.steps + [positions]

    def resized(self, before: Sizes, after: Sizes) -> KeepsDoubling:
        return type(self)(2 * self.steps)


class LosesItsSteps(OneStep):
    """Is another after it was pickled.

    Arguments as ``OneStep``.
    """

    def __getstate__(self) -> dict[str, int]:
        return {"steps": self.steps + 1}

    def __deepcopy__(self, memo: object) -> LosesItsSteps:
        return type(self)(self.steps)

    def numbers(self, positions: int) -> list[int]:
        return [0] * self.steps + [positions]
