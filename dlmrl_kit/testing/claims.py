"""The check of what a component claims about the gradient. The audit alone decides: ``audit.claims.broken_claim``."""

from __future__ import annotations

from dlmrl_kit.audit.claims import broken_claim
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.subject import build, entry_of


def check_claim(name: str, component: Component) -> None:
    """If registered as unbiased: among exact components its gradient is the true one, up to the registered scale.

    A claim with a condition (``under=``) is that of the defaults; one without is that of any instance.
    """
    entry = entry_of(type(component))
    if entry is None or entry.claims.unbiased is not True:
        return
    subject = build(type(component)) if entry.claims.under else component
    if not isinstance(subject, Component):
        return
    with attempt(name, "audited on small problems", "see what the audit runs on (docs/audit.md)"):
        try:
            broken = broken_claim(subject)
        except RecipeError as error:  # it does not fit the exact components
            broken = f"claims to be unbiased, which cannot be audited: {error}"
    if broken:
        fix = "correct the component, or register unbiased=False, or another scale= or condition under="
        fail(name, broken.removeprefix(f"{name} "), fix)


CHECKS = (check_claim,)
