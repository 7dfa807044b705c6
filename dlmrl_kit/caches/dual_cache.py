"""Dual cache (Fast-dLLM, arXiv 2505.22618): keys and values before and after the current block are reused."""

from __future__ import annotations

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.registry import register


@register("cache", paper="arXiv 2505.22618")
class DualCache(Cache):
    """Computes only the current block in each step; keys and values of all else are from the step in which it began.

    This is the faster and coarser of the two caches, as the masks after the block do not see what is committed in it.
    Predictions after the block, which one-step greedy completions need, are from the step in which the block began.
    With ``refresh`` all of this is also computed again within the block.

    Args:
        refresh: as ``Cache``.

    Raises:
        ValueError: a value out of range.
    """

    to_end = False
