"""Tensors and settings that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dlmrl_kit.core.behaviour import Behaviour, draw, sample
from dlmrl_kit.core.errors import NotFiniteError, ParameterError
from dlmrl_kit.core.finite import all_finite, require_finite, weights_of
from dlmrl_kit.core.validate import Unlimited, check, is_finite

BROKEN = [math.nan, math.inf, -math.inf]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", BROKEN)
def test_one_entry_is_enough(value: float, dtype: torch.dtype) -> None:
    good = torch.tensor([[1.0, -2.0], [57344.0, 0.0]]).to(dtype)
    broken = torch.tensor([[1.0, -2.0], [value, 0.0]]).to(dtype)
    assert all_finite(good)
    assert not all_finite(broken)
    with pytest.raises(NotFiniteError, match=r"^here: second and 1 more tensors have NaN or infinite values$"):
        require_finite([("first", good), ("second", broken), ("third", broken)], "here")
    require_finite([("first", good)], "here")


def test_what_has_no_infinity() -> None:
    assert all_finite(torch.tensor([2**62]))
    assert all_finite(torch.empty(0))
    assert all_finite(torch.empty(3, device="meta"))
    assert all_finite(torch.tensor([3e38, 3e38]))  # whose sum is infinite


def test_weights_are_parameters_and_kept_buffers() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("scale", torch.ones(1))
    module.register_buffer("cache", torch.tensor([math.inf]), persistent=False)
    assert [name for name, _ in weights_of(module)] == ["weight", "bias", "scale"]


@pytest.mark.parametrize("value", [*BROKEN, 10**400, (1.0, math.inf), [0, math.nan], {"a": math.inf}, {math.inf: 1}])
def test_settings_that_are_not_finite(value: object) -> None:
    assert not is_finite(value)
    with pytest.raises(ParameterError, match=r"^object\.rate must be positive and finite, got ") as caught:
        check(True, object(), "rate", value, "positive")
    assert len(str(caught.value)) < 150

    class Capped(Unlimited):
        unlimited = ("cap",)

    check(True, Capped(), "cap", value, "at least 1")
    with pytest.raises(ParameterError, match=r"^Capped\.rate must be positive and finite, got "):
        check(True, Capped(), "rate", value, "positive")


@pytest.mark.parametrize("value", [1, 2.5, "inf", None, True, (1, 2.0), {"a": [1]}, object])
def test_settings_that_are_finite(value: object) -> None:
    assert is_finite(value)
    check(True, object(), "rate", value, "positive")


@pytest.mark.parametrize("vocab", [5, 3000])
def test_logits_that_are_not_finite_cannot_be_drawn_from(vocab: int) -> None:
    """This was "index 24 is out of bounds for dimension 1 with size 24"."""
    logits = torch.zeros(3, vocab)
    logits[1, 2] = math.nan
    with pytest.raises(NotFiniteError, match="the policy's probabilities are not finite"):
        sample(logits, torch.full((3,), 0.5).double())
    with pytest.raises(NotFiniteError, match="the policy's probabilities are not finite"):
        draw(logits, Behaviour(temperature=0.7), torch.full((3,), 0.5).double())
