"""Dual cache (Fast-dLLM, arXiv 2505.22618): keys and values before and after the current block are reused."""

from __future__ import annotations

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.registry import register


@register("cache", paper="arXiv 2505.22618")
class DualCache(Cache):
    """Computes the current block alone; everything else is as it was when the block was begun.

    The fastest, and the coarser of the two: the masks behind the block do not see what is committed in it. Predictions
    behind the block (one-step greedy completions) are those of the step in which it was begun.
    """

    to_end = False
