"""An evaluation with all its parts."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.core.results import EvalResult


def evaluation(accuracy: float, **changes: Any) -> EvalResult:
    sample = {"prompt": "1_3_:", "completion": "12[red]34\x1b[31m", "answer": "1234", "solved": 0.0, "reward": 0.25}
    values: dict[str, Any] = {
        "split": "heldout",
        "size": 400,
        "accuracy": accuracy,
        "reward": accuracy + 0.1,
        "components": {"cells": accuracy + 0.2},
        "pass_at_k": {1: accuracy},
        "decoding": {"sampler": "LowConfidence", "temperature": 0.0, "tokens_per_step": 2},
        "samples": [sample],
    }
    return EvalResult(**{**values, **changes})
