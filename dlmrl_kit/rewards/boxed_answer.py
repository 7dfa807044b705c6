r"""Pays a ``\boxed{}`` inside the answer.

As published the test looks for a backspace character in place of the backslash, and never pays; here it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.tags import in_answer, in_box


def boxed_answer(text: str) -> float:
    r"""Returns 1 if a ``\boxed{}`` with something in it stands in ``<answer>``, 0.5 for the tag alone, else 0."""
    found = in_answer(text)
    if found is None:
        return 0.0
    return 1.0 if in_box(found) else 0.5


@register("reward", paper="arXiv 2504.12216; arXiv 2603.12554")
class BoxedAnswer(RewardFunction):
    r"""1 if a ``\boxed{}`` stands between the answer tags, 0.5 for the tags without it, else 0.

    Arguments, raises as ``RewardFunction``.
    """

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns 1, 0.5 or 0."""
        return boxed_answer(text)
