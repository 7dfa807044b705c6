r"""Pays each tag that stands once and on its line, and takes off for what is written behind the answer.

    0.125 [<reasoning>\n once] + 0.125 [\n</reasoning>\n once] + 0.125 [\n<answer>\n once] + 0.125 [\n</answer> once]
        - 0.001 (characters behind the answer, counted for each of the last two tags that stands once)

The first count is of those behind the last ``\n</answer>\n``, of the whole text where it has none, and the second of
those behind the last ``\n</answer>``, less one: as published, and so the value may be below 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.rewards.base import RewardFunction


def tag_count(text: str) -> float:
    """Returns the value of the module's formula, at most 0.501."""
    value = 0.125 * ((text.count("<reasoning>\n") == 1) + (text.count("\n</reasoning>\n") == 1))
    if text.count("\n<answer>\n") == 1:
        value += 0.125 - 0.001 * len(text.rpartition("\n</answer>\n")[2])
    if text.count("\n</answer>") == 1:
        value += 0.125 - 0.001 * (len(text.rpartition("\n</answer>")[2]) - 1)
    return value


@register("reward", paper="arXiv 2504.12216; arXiv 2603.12554")
class TagCount(RewardFunction):
    """0.125 for each of four tags, less 0.001 for each character behind the answer; may be negative.

    Arguments, raises as ``RewardFunction``.
    """

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns the sum."""
        return tag_count(text)
