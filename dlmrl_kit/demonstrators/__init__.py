"""Demonstrators: whose completions a denoiser is pre-trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.demonstrators.answers import Answers as Answers
    from dlmrl_kit.demonstrators.base import Demonstrator as Demonstrator
    from dlmrl_kit.demonstrators.chosen import Chosen as Chosen
    from dlmrl_kit.demonstrators.mixed_sudoku_solvers import MixedSudokuSolvers as MixedSudokuSolvers
    from dlmrl_kit.demonstrators.rejected import Rejected as Rejected

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "answers": ["Answers"],
        "base": ["Demonstrator"],
        "chosen": ["Chosen"],
        "mixed_sudoku_solvers": ["MixedSudokuSolvers"],
        "rejected": ["Rejected"],
    },
)
