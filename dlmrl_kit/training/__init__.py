"""Training: the update, the loop around it, checkpoints, evaluation. Names are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.training.evaluation import evaluate as evaluate
    from dlmrl_kit.training.evaluation import evaluate_path as evaluate_path
    from dlmrl_kit.training.runs import resume as resume
    from dlmrl_kit.training.runs import train as train

__getattr__, __dir__, __all__ = lazily(
    __name__, {"evaluation": ["evaluate", "evaluate_path"], "runs": ["resume", "train"]}
)
