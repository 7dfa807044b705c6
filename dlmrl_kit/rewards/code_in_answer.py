"""Pays a program between the answer tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.code_text import answer_text, code_in, defined


@register("reward", paper="arXiv 2603.12554")
class CodeInAnswer(RewardFunction):
    """1 if the text between the answer tags defines what the task asks for, by its look, else 0.

    Arguments, raises as ``RewardFunction``.
    """

    needs = ("names",)

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns 1 or 0."""
        return float(answer_text(text) is not None and bool(set(meta["names"]) & defined(code_in(text, meta["names"]))))
