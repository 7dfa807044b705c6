"""Dual cache (Fast-dLLM, arXiv 2505.22618): keys and values before and after the current block are reused."""

from __future__ import annotations

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.registry import register


@register("cache", paper="arXiv 2505.22618")
class DualCache(Cache):
    """Computes the current block alone; keys and values of everything else are those of the step in which it was begun.

    This is the faster and the coarser of the two caches: the masks behind the block do not see what is committed in it.
    Predictions behind the block, which one-step greedy completions need, are those of the step in which it was begun.
    """

    to_end = False
