"""Pays an answer that is a whole number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.tags import in_answer


def integer_answer(text: str) -> float:
    """Returns 1 if what stands in ``<answer>`` is nothing but digits 0 to 9, else 0."""
    found = in_answer(text) or ""
    return float(found.isascii() and found.isdigit())


@register("reward", paper="arXiv 2504.12216; arXiv 2603.12554")
class IntegerAnswer(RewardFunction):
    """1 if the answer between the tags is nothing but digits, else 0.

    Arguments, raises as ``RewardFunction``.
    """

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns 1 or 0."""
        return integer_answer(text)
