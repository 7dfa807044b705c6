"""Collectors: where rollouts are sampled, other than in the process that trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.collectors.base import Collector as Collector
    from dlmrl_kit.collectors.base import Sampling as Sampling
    from dlmrl_kit.collectors.one_update_behind import OneUpdateBehind as OneUpdateBehind
    from dlmrl_kit.collectors.ray_actors import Ray as Ray
    from dlmrl_kit.collectors.served import Served as Served

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Collector", "Sampling"],
        "one_update_behind": ["OneUpdateBehind"],
        "ray_actors": ["Ray"],
        "served": ["Served"],
    },
)
