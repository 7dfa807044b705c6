"""Approximate key-value caches for rollouts of models with bidirectional attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.caches.adaptive_refresh import AdaptiveRefresh as AdaptiveRefresh
    from dlmrl_kit.caches.base import Cache as Cache
    from dlmrl_kit.caches.dual_cache import DualCache as DualCache
    from dlmrl_kit.caches.prefix_cache import PrefixCache as PrefixCache

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "adaptive_refresh": ["AdaptiveRefresh"],
        "base": ["Cache"],
        "dual_cache": ["DualCache"],
        "prefix_cache": ["PrefixCache"],
    },
)
