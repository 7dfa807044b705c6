"""Which checks of a component fail; an audit that samples, in less than the quarter of a minute that it takes."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from dlmrl_kit.audit import claims
from dlmrl_kit.testing import ConformanceError, checks_for


def failures(component: Any, *but: str) -> dict[str, str]:
    """Message of each check that fails; without some that are named."""
    found = {}
    for check in checks_for(component):
        if check.name in but:
            continue
        try:
            check(component)
        except ConformanceError as error:
            found[check.name] = " ".join(str(error).split())
    return found


@pytest.fixture
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be listed is judged by 100 batches on each problem, not by 400."""
    monkeypatch.setattr(claims, "audit_algorithm", functools.partial(claims.audit_algorithm, batches=100))
