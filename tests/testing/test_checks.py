"""The checks themselves: as cases of pytest, for classes and instances, named and explained."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from support.conformance import failures
from support.faults.selectors import LeastProbable, MissesAnOutcome, ReadsUndeclared, SilentSelector, WritesMore
from support.faults.values import PlainValue

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import KEYS, PROBABILITY, SELECTED_UNIT, SELECTED_WEIGHT, STEP_VALID, TRAJECTORY
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.regularisers.kl import KLK3
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.testing import ConformanceError, check_component, checks_for, parametrize_with_checks
from dlmrl_kit.testing.world import world


def test_a_plugin_that_conforms_passes_as_class_and_instance(registered: Any) -> None:
    cls = registered("selector", SilentSelector)
    cls.__doc__ = "All steps."
    try:
        check_component(cls)
        check_component(cls())
    finally:
        cls.__doc__ = None


def test_a_value_model_that_conforms(registered: Any) -> None:
    check_component(registered("value", PlainValue))


def test_a_selector_that_reads_neither_entropy_nor_advantage_is_as_precise_as_what_it_reads() -> None:
    assert set(failures(LeastProbable())) == {"check_registered"}


def test_everything_wrong_is_told_once(registered: Any) -> None:
    with pytest.raises(ConformanceError) as raised:
        check_component(registered("selector", ReadsUndeclared))
    text = str(raised.value)
    assert re.match(r"ReadsUndeclared fails \d+ of 26 checks", text)
    assert text.count("To fix it") <= 3
    assert "check_registered" not in text


@pytest.mark.thorough
def test_the_guard_on_plugins_speaks_through_the_checks(registered: Any) -> None:
    class Guarded(WritesMore):
        """Leaves a note, and is registered: the guard stays in the class, so it is this test's own."""

    found = failures(registered("selector", Guarded)())
    assert "ComponentError" in found["check_writes_declared_keys"]
    assert "('step', 'note')" in found["check_writes_declared_keys"]


@parametrize_with_checks(
    [MissesAnOutcome(2)],
    expected_failures={
        "MissesAnOutcome-check_registered": "a class of this test",
        "MissesAnOutcome-check_outcomes": "its fault",
    },
)
def test_expected_failures_are_strict(component: Any, check: Any) -> None:
    check(component)


def test_cases_have_readable_ids_and_reasons() -> None:
    mark = parametrize_with_checks([RandomSteps, KLK3(0.1)], {"KLK3-check_gradient": "because"}).mark
    assert mark.args[0] == ("component", "check")
    cases = {case.id: case for case in mark.args[1]}
    assert "RandomSteps-check_steps_distinct" in cases
    (xfail,) = cases["KLK3-check_gradient"].marks
    assert xfail.kwargs == {"strict": True, "raises": ConformanceError, "reason": "because"}
    assert all(not case.marks for name, case in cases.items() if name != "KLK3-check_gradient")


def test_an_expected_failure_that_is_no_case_is_refused() -> None:
    with pytest.raises(ValueError, match="no such case: 'KLK3-check_typo'"):
        parametrize_with_checks([KLK3], {"KLK3-check_typo": "a typo"})


def test_a_class_that_cannot_be_built() -> None:
    class NeedsAList(Selector):
        """Wants a list."""

        def __init__(self, numbers: list[int]) -> None:
            super().__init__()
            self.total = sum(numbers)

    with pytest.raises(ConformanceError, match=r"TypeError when built as NeedsAList\(numbers=None\).*\n.*an instance"):
        check_component(NeedsAList)
    assert "check_steps_distinct" in {check.name for check in checks_for(NeedsAList)}


def test_a_class_of_no_kind() -> None:
    with pytest.raises(ConformanceError, match=r"Component is of no kind\n.*@register"):
        checks_for(Component)


def test_a_key_that_cannot_be_made_up() -> None:
    class ReadsOwnKey(Selector):
        """Reads what only its own sampler writes."""

        def __init__(self) -> None:
            super().__init__(("step", "mine"))

        def kept(self, tensordict: Any) -> Any:
            return tensordict["step", "mine"] > 0

    found = failures(ReadsOwnKey())
    assert "reads ('step', 'mine'), which is no key of the trajectory" in found["check_reads_only_in_keys"]


def test_checks_are_named_and_explained() -> None:
    for entry in components():
        checks = checks_for(entry.cls)
        assert len({check.name for check in checks}) == len(checks)
        assert all(check.summary.endswith(".") and str(check) == check.name for check in checks)


def test_the_world_is_padded_everywhere() -> None:
    full = world().full
    steps, used = full[STEP_VALID].sum(-1), full[SELECTED_WEIGHT] > 0
    assert (steps < full[STEP_VALID].shape[1]).sum() >= 2
    assert used.any(-1).tolist() == [True] * 7 + [False]
    assert (used.sum(-1) < used.shape[1]).any()
    renoised = {("step", "state_ids"), ("step", "accepted")}  # of samplers that renoise: states that cannot be rebuilt
    of_audits = {PROBABILITY, TRAJECTORY, SELECTED_UNIT}
    assert set(KEYS) - renoised - of_audits <= set(full.keys(True, True))
    assert (full["commit_step"] == full[STEP_VALID].shape[1]).any()


@pytest.mark.thorough
def test_nothing_needs_pytest_until_it_is_asked_for() -> None:
    code = "import sys, dlmrl_kit.testing as t; assert 'pytest' not in sys.modules and t.check_component"
    subprocess.run([sys.executable, "-c", code], check=True)
