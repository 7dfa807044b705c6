"""Parameters and registration of the loggers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.loggers.torchrl_logger import TorchRLLogger
from dlmrl_kit.recipe.catalogue import find


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TorchRLLogger("visdom"), "TorchRLLogger.backend must be one of wandb, mlflow, trackio, csv"),
        (lambda: TorchRLLogger("csv", options={"a": 1}), "TorchRLLogger.options must be empty for csv"),
    ],
)
def test_bad_parameters(make: Callable[[], Logger], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["MetricsCSV", "TensorBoard", "TorchRLLogger"])
def test_registered(name: str) -> None:
    assert find(name).kind == "logger"
    assert issubclass(find(name).cls, Logger)
