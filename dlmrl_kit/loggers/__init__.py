"""Loggers: where metrics go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.loggers.base import Handled as Handled
    from dlmrl_kit.loggers.base import Logger as Logger
    from dlmrl_kit.loggers.metrics_csv import MetricsCSV as MetricsCSV
    from dlmrl_kit.loggers.mlflow import MLflow as MLflow
    from dlmrl_kit.loggers.tensorboard import TensorBoard as TensorBoard
    from dlmrl_kit.loggers.tracker import Tracker as Tracker
    from dlmrl_kit.loggers.trackio import Trackio as Trackio
    from dlmrl_kit.loggers.wandb import WandB as WandB

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Handled", "Logger"],
        "metrics_csv": ["MetricsCSV"],
        "mlflow": ["MLflow"],
        "tensorboard": ["TensorBoard"],
        "tracker": ["Tracker"],
        "trackio": ["Trackio"],
        "wandb": ["WandB"],
    },
)
