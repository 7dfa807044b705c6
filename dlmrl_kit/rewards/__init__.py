"""Rewards: named numbers that a completion earns; a task adds them up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.rewards.answer_format import SoftFormat as SoftFormat
    from dlmrl_kit.rewards.answer_format import StrictFormat as StrictFormat
    from dlmrl_kit.rewards.base import RewardFunction as RewardFunction
    from dlmrl_kit.rewards.boxed_answer import BoxedAnswer as BoxedAnswer
    from dlmrl_kit.rewards.code_in_answer import CodeInAnswer as CodeInAnswer
    from dlmrl_kit.rewards.correct_answer import CorrectAnswer as CorrectAnswer
    from dlmrl_kit.rewards.countdown_value import CountdownValue as CountdownValue
    from dlmrl_kit.rewards.integer_answer import IntegerAnswer as IntegerAnswer
    from dlmrl_kit.rewards.right_cells import RightCells as RightCells
    from dlmrl_kit.rewards.tag_count import TagCount as TagCount
    from dlmrl_kit.rewards.unit_tests import UnitTests as UnitTests

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "answer_format": ["SoftFormat", "StrictFormat"],
        "base": ["RewardFunction"],
        "boxed_answer": ["BoxedAnswer"],
        "code_in_answer": ["CodeInAnswer"],
        "correct_answer": ["CorrectAnswer"],
        "countdown_value": ["CountdownValue"],
        "integer_answer": ["IntegerAnswer"],
        "right_cells": ["RightCells"],
        "tag_count": ["TagCount"],
        "unit_tests": ["UnitTests"],
    },
)
