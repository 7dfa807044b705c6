"""Pays the form of an answer: reasoning, then answer, each between its tags.

``StrictFormat`` wants every tag on a line of its own and nothing else. As published its pattern never matches reasoning
of more than one line; here it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.rewards.base import RewardFunction

_TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")


def _parts(text: str) -> list[str] | None:
    """Returns what stands before, between and behind the four tags; None unless each is there once, in this order."""
    if any(text.count(tag) != 1 for tag in _TAGS):
        return None
    parts = []
    for tag in _TAGS:
        before, found, text = text.partition(tag)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def strict_format(text: str) -> float:
    """Returns 1 if a text is reasoning and answer between their tags, each tag on its own line, and no more; else 0.

    A line break behind the last tag is optional.
    """
    parts = _parts(text)
    if parts is None:
        return 0.0
    before, reasoning, between, answer, behind = parts
    inside = [part.startswith("\n") and part.endswith("\n") and len(part) > 1 for part in (reasoning, answer)]
    return float(before == "" and between == "\n" and behind in ("", "\n") and all(inside))


def soft_format(text: str) -> float:
    """Returns 1 if a text begins with reasoning and answer between their tags, with white space between; else 0."""
    found = re.match(r"<reasoning>(?:(?!</reasoning>)[\s\S])*</reasoning>\s*<answer>", text)
    return float(found is not None and "</answer>" in text[found.end() :])


@register("reward", paper="arXiv 2504.12216; arXiv 2603.12554")
class StrictFormat(RewardFunction):
    """1 if the text is reasoning and answer, each tag once and on its own line, and nothing else; else 0.

    Arguments, raises as ``RewardFunction``.
    """

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns 1 or 0."""
        return strict_format(text)


@register("reward", paper="arXiv 2504.12216; arXiv 2603.12554")
class SoftFormat(RewardFunction):
    """1 if the text begins with reasoning and answer between their tags, in whatever lines; else 0.

    Arguments, raises as ``RewardFunction``.
    """

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns 1 or 0."""
        return soft_format(text)
