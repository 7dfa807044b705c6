"""Prefix cache (Fast-dLLM, arXiv 2505.22618): keys and values before the current block are reused."""

from __future__ import annotations

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.registry import register


@register("cache", paper="arXiv 2505.22618")
class PrefixCache(Cache):
    """Computes the current block and everything after it in each step.

    Keys and values of the prompt and of finished blocks are from the step in which the current block began, or, with
    ``refresh``, from a later one.

    Args:
        refresh: as ``Cache``.

    Raises:
        ValueError: a value out of range.
    """

    to_end = True
