"""Registration of the loggers."""

from __future__ import annotations

import pytest

from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.recipe.catalogue import find


@pytest.mark.parametrize("name", ["MetricsCSV", "TensorBoard", "WandB", "MLflow", "Trackio"])
def test_registered(name: str) -> None:
    assert find(name).kind == "logger"
    assert issubclass(find(name).cls, Logger)
