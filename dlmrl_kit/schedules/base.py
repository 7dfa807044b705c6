"""The interface of schedules: numbers that depend on how far a row's denoising has come."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.promises import like, promises


class Schedule(Dependent, ABC):
    """Base class of schedules: a function of ``fraction`` = t / max(n - 1, 1), for step t of a row of n steps."""

    @abstractmethod
    @promises(like("real", "fraction"))
    def __call__(self, fraction: Tensor) -> Tensor:
        """Returns the values at ``fraction``, a float tensor of any shape with numbers in [0, 1], in its shape."""
