"""Schedules by hand and by their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dlmrl_kit.schedules.base import Schedule
from dlmrl_kit.schedules.curves import Constant, Cosine, Exponential, Linear, Polynomial


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (Exponential(0.5, 2.0, 3.0), lambda f: 0.5 + 1.5 * (math.exp(3 * f) - 1) / (math.exp(3) - 1)),
        (Exponential(0.5, 2.0, -1.0), lambda f: 0.5 + 1.5 * (math.exp(-f) - 1) / (math.exp(-1) - 1)),
        (Polynomial(2.0, 0.5, 0.7), lambda f: 0.5 + 1.5 * (1 - f) ** 0.7),
        (Polynomial(0.0, 1.0), lambda f: f),
    ],
    ids=("steep", "negative", "power", "linear"),
)
def test_schedules(schedule: Any, formula: Any) -> None:
    for f in (0.0, 0.3, 0.5, 1.0):
        assert schedule(torch.tensor(f, dtype=torch.float64)).item() == pytest.approx(formula(f))
    for change in ({"rate": 0.0}, {"rate": 101.0}) if isinstance(schedule, Exponential) else ({"power": 0.0},):
        with pytest.raises(ValueError, match=next(iter(change))):
            type(schedule)(0.0, 1.0, **change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.75), [0.75, 0.75, 0.75, 0.75]),
        (Linear(2.0, 1.0), [2.0, 1.75, 1.5, 1.0]),
        (Linear(0.1, 0.3), [0.1, 0.15, 0.2, 0.3]),
        (Cosine(2.0, 1.0), [2.0, 1.5 + 2**0.5 / 4, 1.5, 1.0]),
        (Cosine(0.1, 0.3), [0.1, 0.2 - 0.1 * 2**0.5 / 2, 0.2, 0.3]),
    ],
    ids=repr,
)
def test_schedules_by_hand(schedule: Schedule, expected: list[float], dtype: torch.dtype) -> None:
    fraction = torch.tensor([[0.0, 0.25], [0.5, 1.0]], dtype=dtype)
    torch.testing.assert_close(schedule(fraction), torch.tensor(expected, dtype=dtype).reshape(2, 2))
    assert fraction.flatten().tolist() == [0.0, 0.25, 0.5, 1.0]
