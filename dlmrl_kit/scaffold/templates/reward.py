"""Pays short answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlmrl_kit import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.rewards.base import RewardFunction


@register("reward")
class AcmeReward(RewardFunction):
    """1 for an empty text, less with every character, 0 from ``most`` characters on.

    Args:
        most: a number of characters, at least 1.
        weight, name: as ``RewardFunction``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, most: int = 200, weight: float = 1.0, name: str = "") -> None:
        super().__init__(weight, name)
        check(most >= 1, self, "most", most, "at least 1")
        self.most = most

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns a number from 0 to 1."""
        return max(0.0, 1 - len(text) / self.most)
