"""Settings of the training loop, as components of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.trainers.base import OptimiserArguments as OptimiserArguments
    from dlmrl_kit.trainers.base import OptimiserSettings as OptimiserSettings
    from dlmrl_kit.trainers.trainer import Trainer as Trainer

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["OptimiserArguments", "OptimiserSettings"],
        "trainer": ["Trainer"],
    },
)
