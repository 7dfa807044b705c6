"""Tasks: prompts and verifiable rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.tasks.base import BaseTask as BaseTask
    from dlmrl_kit.tasks.base import Example as Example
    from dlmrl_kit.tasks.base import Task as Task
    from dlmrl_kit.tasks.code_task import CodeTask as CodeTask
    from dlmrl_kit.tasks.conversations import Conversations as Conversations
    from dlmrl_kit.tasks.countdown import Countdown as Countdown
    from dlmrl_kit.tasks.countdown_numbers import CountdownNumbers as CountdownNumbers
    from dlmrl_kit.tasks.data_task import DataTask as DataTask
    from dlmrl_kit.tasks.gsm8k import GSM8K as GSM8K
    from dlmrl_kit.tasks.human_eval import HumanEval as HumanEval
    from dlmrl_kit.tasks.json_lines import JsonLines as JsonLines
    from dlmrl_kit.tasks.kodcode import KodCode as KodCode
    from dlmrl_kit.tasks.math_problems import MATH as MATH
    from dlmrl_kit.tasks.mbpp import MBPP as MBPP
    from dlmrl_kit.tasks.mixture import Mixture as Mixture
    from dlmrl_kit.tasks.questions import Questions as Questions
    from dlmrl_kit.tasks.reasoning_gym import ReasoningGym as ReasoningGym
    from dlmrl_kit.tasks.sudoku import Sudoku4x4 as Sudoku4x4
    from dlmrl_kit.tasks.sudoku_puzzles import Sudoku4x4Puzzles as Sudoku4x4Puzzles
    from dlmrl_kit.tasks.text_task import TextTask as TextTask

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["BaseTask", "Example", "Task"],
        "code_task": ["CodeTask"],
        "conversations": ["Conversations"],
        "countdown": ["Countdown"],
        "countdown_numbers": ["CountdownNumbers"],
        "data_task": ["DataTask"],
        "gsm8k": ["GSM8K"],
        "human_eval": ["HumanEval"],
        "json_lines": ["JsonLines"],
        "kodcode": ["KodCode"],
        "math_problems": ["MATH"],
        "mbpp": ["MBPP"],
        "mixture": ["Mixture"],
        "questions": ["Questions"],
        "reasoning_gym": ["ReasoningGym"],
        "sudoku": ["Sudoku4x4"],
        "sudoku_puzzles": ["Sudoku4x4Puzzles"],
        "text_task": ["TextTask"],
    },
)
