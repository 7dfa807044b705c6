"""Which checks apply to a component; running them all; one pytest case per component and check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.registry import KINDS
from dlmrl_kit.testing import (
    advantages,
    caches,
    claims,
    collectors,
    constructor,
    corrections,
    declarations,
    filters,
    likelihoods,
    loggers,
    normalisers,
    padding,
    rewards,
    samplers,
    schedules,
    selectors,
    sizes,
    step_schedules,
    tasks,
    terms,
    values,
)
from dlmrl_kit.testing.check import Check, CheckFunction
from dlmrl_kit.testing.core import ConformanceError
from dlmrl_kit.testing.subject import build, fits_kind, kind_of

if TYPE_CHECKING:
    import pytest

OF_KIND: dict[str, tuple[CheckFunction, ...]] = {
    "task": tasks.CHECKS,
    "reward": rewards.CHECKS,
    "sampler": samplers.CHECKS,
    "cache": caches.CHECKS,
    "correction": corrections.CHECKS,
    "collector": collectors.CHECKS,
    "filter": filters.CHECKS,
    "selector": (*selectors.CHECKS, *sizes.SELECTOR_CHECKS, *claims.CHECKS),
    "advantage": (*advantages.CHECKS, *claims.CHECKS),
    "likelihood": (*likelihoods.CHECKS, *claims.CHECKS),
    "value": values.CHECKS,
    "loss": (*terms.LOSS_CHECKS, *claims.CHECKS),
    "regulariser": terms.REGULARISER_CHECKS,
    "normaliser": normalisers.CHECKS,
    "schedule": schedules.CHECKS,
    "step_schedule": step_schedules.CHECKS,
    "logger": loggers.CHECKS,
}
"""The checks that only components of one kind are for."""

OF_COMPONENTS: tuple[CheckFunction, ...] = (*declarations.CHECKS, *padding.CHECKS, *sizes.CHECKS)
"""The checks of what runs on trajectories."""


def checks_for(component: object) -> list[Check]:
    """Returns the checks that apply to a component, an instance or a class.

    One that does not inherit from the base class of its kind has only those of the class itself, the first of which
    says so.

    Raises:
        ConformanceError: it is of no kind (see ``dlmrl_kit.core.registry.KINDS``).
    """
    cls = component if isinstance(component, type) else type(component)
    kind = kind_of(cls)
    functions: list[CheckFunction] = [*constructor.CHECKS]
    if fits_kind(cls):
        functions += OF_COMPONENTS if issubclass(cls, Component) else ()
        functions += OF_KIND.get(kind, ())
        functions += KINDS[kind].checks
    return [Check(function) for function in functions]


def check_component(component: object) -> None:
    """Runs every check that applies to a component.

    Args:
        component: an instance, or a class, which is built with its defaults.

    Raises:
        ConformanceError: one or more checks failed; the message says of each what to change.
    """
    checks, subject = checks_for(component), build(component)
    found: dict[str, list[str]] = {}
    for check in checks:
        try:
            check(subject)
        except ConformanceError as error:  # one mistake may fail many checks: say it once
            found.setdefault(str(error), []).append(check.name)
    if found:
        failed = sum(map(len, found.values()))
        head = f"{type(subject).__name__} fails {failed} of {len(checks)} checks"
        parts = [f"{', '.join(names)}:\n  {text}" for text, names in found.items()]
        raise ConformanceError("\n\n".join([head, *parts]))


def parametrize_with_checks(
    components: Iterable[object], expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Returns a pytest decorator: one case per component and check, with the id ``Name-check``.

    Use it on a test that takes ``component`` and ``check`` and calls ``check(component)``.

    Args:
        components: instances, or classes, which are built with their defaults.
        expected_failures: id of a case -> the reason why it fails. Such a case is a strict ``xfail``: if it passes, the
            test fails, so that the list stays true.

    Raises:
        ConformanceError: a class that cannot be built, or of no kind.
        ValueError: an expected failure that is no case.
    """
    import pytest  # needed by nothing else in the kit: it is not among what the kit installs

    expected, cases, known = dict(expected_failures or {}), [], set()
    for component in map(build, components):
        for check in checks_for(component):
            case = f"{type(component).__name__}-{check.name}"
            known.add(case)
            marks = []
            if case in expected:
                marks.append(pytest.mark.xfail(strict=True, raises=ConformanceError, reason=expected[case]))
            cases.append(pytest.param(component, check, id=case, marks=marks))
    if unknown := sorted(set(expected) - known):
        raise ValueError(f"no such case: {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return pytest.mark.parametrize(("component", "check"), cases)
