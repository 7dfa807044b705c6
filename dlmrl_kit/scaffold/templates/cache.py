"""Reuses keys and values of the prompt and of finished blocks."""

from __future__ import annotations

from dlmrl_kit import register
from dlmrl_kit.caches.base import Cache


@register("cache")
class AcmeCache(Cache):
    """Computes the current block and everything after it in each step, and reuses what is before it.

    Args:
        refresh: as ``Cache``.

    Raises:
        ValueError: a value out of range.
    """

    to_end = True
