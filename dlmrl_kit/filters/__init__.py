"""Filters: which samples of a rollout are trained at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.filters.base import Filter as Filter
    from dlmrl_kit.filters.drop_equal_rewards import DropEqualRewards as DropEqualRewards
    from dlmrl_kit.filters.drop_equal_speeds import DropEqualSpeeds as DropEqualSpeeds
    from dlmrl_kit.filters.success_range import SuccessRange as SuccessRange

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Filter"],
        "drop_equal_rewards": ["DropEqualRewards"],
        "drop_equal_speeds": ["DropEqualSpeeds"],
        "success_range": ["SuccessRange"],
    },
)
