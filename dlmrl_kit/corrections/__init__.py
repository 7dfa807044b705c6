"""Corrections: importance weights for rollouts that were not sampled from the policy itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.corrections.base import Correction as Correction
    from dlmrl_kit.corrections.base import Drift as Drift
    from dlmrl_kit.corrections.trajectory_importance import TrajectoryImportance as TrajectoryImportance
    from dlmrl_kit.corrections.truncated_importance import TruncatedImportance as TruncatedImportance
    from dlmrl_kit.corrections.uncorrected import Uncorrected as Uncorrected

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Correction", "Drift"],
        "trajectory_importance": ["TrajectoryImportance"],
        "truncated_importance": ["TruncatedImportance"],
        "uncorrected": ["Uncorrected"],
    },
)
