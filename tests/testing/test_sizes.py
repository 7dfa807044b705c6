"""What a component declares about its sizes is checked, and no selector passes for AllSteps."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.conformance import failures, few_batches
from support.faults.sizes import (
    BatchBudget,
    BecomesAnother,
    Budget,
    EarlyAdvantage,
    EarlyRandom,
    EarlyReinforce,
    FirstSteps,
    ForgetsASetting,
    HalvesAgain,
    LosesItsParameter,
    ReadsAdvantages,
    ResizesItself,
    ScaledBudget,
    ScaledFirstSteps,
    StaysLong,
    WeightedBudget,
)

from dlmrl_kit.regularisers.kl import KLK3
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.testing import ConformanceError, check_component

__all__ = ["few_batches"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("component", "name", "message"),
    [
        (FirstSteps(), "check_leaves_steps_out", r"keeps all 4 of 4 steps.*k=before\.scale_steps\(self\.k, after\)"),
        (Budget(), "check_leaves_steps_out", r"budget=before\.scale_steps\(self\.budget, after\)"),
        (LosesItsParameter(), "check_settings_kept", "its parameter 'k'.*write self.k = k in the constructor"),
        (ForgetsASetting(), "check_resized", "has share = 0.5 when resized, and 0.45 before.*keeps all other settings"),
        (ForgetsASetting(share=0.2), "check_resized", "has share = 0.5 when resized, and 0.2 before"),
        (ResizesItself(), "check_resized", "changes its own k in resized.*make a new component"),
        (BecomesAnother(), "check_resized", "gives a FirstSteps when resized.*of the same class"),
        (HalvesAgain(), "check_resized", "changes k once more when resized"),
        (StaysLong(9), "check_resized", r"has completions of 9 positions when resized to 4.*self\.fitted"),
    ],
)
def test_each_fault_is_caught(component: Any, name: str, message: str) -> None:
    assert re.search(message, failures(component)[name]), failures(component)[name]


@pytest.mark.thorough
@pytest.mark.parametrize("component", [ScaledFirstSteps(), ScaledBudget(), ScaledBudget(40), FirstSteps(1), AllSteps()])
def test_what_is_declared_passes(component: Any) -> None:
    assert set(failures(component)) <= {"check_registered"}


def test_a_parameter_may_be_lost_where_nothing_is_made_again() -> None:
    assert not failures(KLK3(0.1))


@pytest.mark.thorough
@pytest.mark.parametrize("cls", [FirstSteps, ScaledFirstSteps, Budget, ScaledBudget])
def test_the_first_steps_are_not_unbiased_whatever_the_parameter_is_called(cls: Any, registered: Any) -> None:
    found = failures(registered("selector", cls, unbiased=True)(4))
    assert "claims to be unbiased; the audit finds: biased" in found["check_claim"]


def test_a_class_that_does_not_inherit_from_the_base_class_of_its_kind(registered: Any) -> None:
    class NoSelector:
        """Is no selector."""

    with pytest.raises(ConformanceError, match=r"does not inherit from dlmrl_kit\.selectors\.base\.Selector"):
        check_component(registered("selector", NoSelector))


@pytest.mark.thorough
@pytest.mark.usefixtures("few_batches")
@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("selector", WeightedBudget),
        ("selector", BatchBudget),
        ("selector", EarlyRandom),
        ("loss", EarlyReinforce),
        ("advantage", EarlyAdvantage),
        ("selector", ReadsAdvantages),
    ],
)
def test_a_claim_that_cannot_be_measured_fails(kind: str, cls: Any, registered: Any) -> None:
    found = failures(registered(kind, cls, unbiased=True)())["check_claim"]
    assert re.search("claims to be unbiased, which cannot be audited|the audit finds: biased", found), found
