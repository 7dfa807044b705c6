"""Training: the update, the loop around it, checkpoints, evaluation. Names are imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_LAZY = {
    "train": "dlmrl_kit.training.loop",
    "resume": "dlmrl_kit.training.loop",
    "evaluate": "dlmrl_kit.training.evaluation",
    "evaluate_path": "dlmrl_kit.training.evaluation",
}

__all__ = ["evaluate", "evaluate_path", "resume", "train"]

if TYPE_CHECKING:
    from dlmrl_kit.training.evaluation import evaluate, evaluate_path
    from dlmrl_kit.training.loop import resume, train


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'dlmrl_kit.training' has no attribute {name!r}")
