"""The public names of ``dlmrl_kit.training``."""

from __future__ import annotations

import importlib
import inspect


def test_the_public_names_of_training_are_functions() -> None:
    from dlmrl_kit import training

    importlib.import_module("dlmrl_kit.training.runs")
    assert all(inspect.isfunction(getattr(training, name)) for name in training.__all__)
