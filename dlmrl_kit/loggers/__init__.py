"""Loggers: where metrics go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.loggers.base import Logger as Logger
    from dlmrl_kit.loggers.metrics_csv import MetricsCSV as MetricsCSV
    from dlmrl_kit.loggers.tensorboard import TensorBoard as TensorBoard
    from dlmrl_kit.loggers.torchrl_logger import Forwarding as Forwarding
    from dlmrl_kit.loggers.torchrl_logger import TorchRLLogger as TorchRLLogger

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Logger"],
        "metrics_csv": ["MetricsCSV"],
        "tensorboard": ["TensorBoard"],
        "torchrl_logger": ["Forwarding", "TorchRLLogger"],
    },
)
