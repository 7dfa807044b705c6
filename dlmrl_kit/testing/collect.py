"""Which checks apply to a component; running them all; one pytest case per component and check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dlmrl_kit.testing.core import Check, CheckFunction, ConformanceError
from dlmrl_kit.testing.subject import build, kind_of


def _functions(kind: str) -> tuple[CheckFunction, ...]:
    from dlmrl_kit.testing import constructor

    return (*constructor.CHECKS, *_of_kind(kind))


def _of_kind(kind: str) -> tuple[CheckFunction, ...]:
    from dlmrl_kit.testing import caches, corrections, loggers, schedules, tasks

    plain: dict[str, tuple[CheckFunction, ...]] = {
        "task": tasks.CHECKS,
        "schedule": schedules.CHECKS,
        "cache": caches.CHECKS,
        "correction": corrections.CHECKS,
        "logger": loggers.CHECKS,
    }
    if kind in plain:
        return plain[kind]
    from dlmrl_kit.testing import (
        advantages,
        claims,
        declarations,
        filters,
        likelihoods,
        normalisers,
        padding,
        samplers,
        selectors,
        terms,
        values,
    )

    if kind == "normaliser":
        return normalisers.CHECKS

    flowing: dict[str, tuple[CheckFunction, ...]] = {
        "sampler": samplers.CHECKS,
        "filter": filters.CHECKS,
        "selector": (*selectors.CHECKS, *claims.CHECKS),
        "advantage": (*advantages.CHECKS, *claims.CHECKS),
        "likelihood": (*likelihoods.CHECKS, *claims.CHECKS),
        "value": values.CHECKS,
        "loss": (*terms.LOSS_CHECKS, *claims.CHECKS),
        "regulariser": terms.REGULARISER_CHECKS,
    }
    return (*declarations.CHECKS, *padding.CHECKS, *flowing[kind]) if kind in flowing else ()


def checks_for(component: Any) -> list[Check]:
    """The checks that apply to a component, an instance or a class.

    Raises:
        ConformanceError: it is of no kind (see ``dlmrl_kit.core.registry.KINDS``).
    """
    cls = component if isinstance(component, type) else type(component)
    return [Check(function) for function in _functions(kind_of(cls))]


def check_component(component: Any) -> None:
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


def parametrize_with_checks(components: Iterable[Any], expected_failures: Mapping[str, str] | None = None) -> Any:
    """A pytest decorator: one case per component and check, with the id ``Name-check``.

    Use it on a test that takes ``component`` and ``check`` and calls ``check(component)``.

    Args:
        components: instances, or classes, which are built with their defaults.
        expected_failures: id of a case -> the reason why it fails. Such a case is a strict ``xfail``: if it passes, the
            test fails, so that the list stays true.

    Raises:
        ConformanceError: a class that cannot be built, or of no kind.
        ValueError: an expected failure that is no case.
    """
    import pytest

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
