"""Which checks of a component fail."""

from __future__ import annotations

from typing import Any

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
