"""Schedules: numbers that depend on the denoising step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.schedules.base import Schedule as Schedule
    from dlmrl_kit.schedules.curves import Constant as Constant
    from dlmrl_kit.schedules.curves import Cosine as Cosine
    from dlmrl_kit.schedules.curves import Exponential as Exponential
    from dlmrl_kit.schedules.curves import Linear as Linear
    from dlmrl_kit.schedules.curves import Polynomial as Polynomial

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Schedule"],
        "curves": ["Constant", "Cosine", "Exponential", "Linear", "Polynomial"],
    },
)
