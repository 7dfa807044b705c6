"""Parameters of advantages and schedules that are out of range are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from dlmrl_kit.advantages.group_softmax import GroupSoftmax
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.monte_carlo import MonteCarlo
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.schedules.curves import Constant, Cosine, Linear

BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: GroupZScore(-0.1), r"GroupZScore\.eps must be at least 0 and finite, got -0\.1"),
    (lambda: GroupZScore(correction=2), r"GroupZScore\.correction must be 0 or 1, got 2"),
    (lambda: GroupSoftmax(0.0), r"GroupSoftmax\.temperature must be positive and finite, got 0\.0"),
    (lambda: GroupSoftmax(math.inf), r"GroupSoftmax\.temperature must be positive and finite, got inf"),
    (lambda: OneStepDenoise(-0.5), r"OneStepDenoise\.lam must be at least 0 at every step, got -0\.5"),
    (lambda: OneStepDenoise(Linear(1, -1)), r"OneStepDenoise\.lam must be at least 0 .* got Linear\(start=1, end=-1\)"),
    (lambda: OneStepDenoise("half"), r"OneStepDenoise\.lam must be a number or a schedule, got 'half'"),  # type: ignore[arg-type]
    (lambda: OneStepDenoise(baseline=3), r"OneStepDenoise\.baseline must be a group advantage, got 3"),  # type: ignore[arg-type]
    (lambda: MonteCarlo(n=0), r"MonteCarlo\.n must be an integer, at least 1, got 0"),
    (lambda: MonteCarlo(n_baseline=-1), r"MonteCarlo\.n_baseline must be an integer, at least 0, got -1"),
    (lambda: Constant(math.nan), r"Constant\.value must be finite, got nan"),
    (lambda: Linear(math.inf, 0), r"Linear\.start must be finite, got inf"),
    (lambda: Linear(0, math.nan), r"Linear\.end must be finite, got nan"),
    (lambda: Cosine(math.nan, 0), r"Cosine\.start must be finite, got nan"),
    (lambda: Cosine(0, -math.inf), r"Cosine\.end must be finite, got -inf"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message.split(" ")[0] for _, message in BAD])
def test_parameter_errors_name_component_and_parameter(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
