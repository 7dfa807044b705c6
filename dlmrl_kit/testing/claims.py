"""The check of what a component claims about the gradient, with the exact audit."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.audit import AuditReport, Problem, audit_algorithm, exact_algorithm
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.subject import build, entry_of

TOLERANCE = 1e-8


def check_claim(name: str, component: Any) -> None:
    """If registered as unbiased: among exact components its gradient is the true one, up to the registered scale.

    A claim with a condition (``under=``) is that of the defaults; one without is that of any instance.
    """
    entry = entry_of(type(component))
    if entry is None or entry.claims.unbiased is not True:
        return
    subject = build(type(component)) if entry.claims.under else component
    fix = "see what the audit runs on: two tokens, three positions, a group of two samples (docs/audit.md)"
    try:
        with attempt(name, "audited on a small problem", fix):
            report = audited(entry.kind, subject)
    except AssertionError as error:
        if isinstance(error.__cause__, RecipeError):  # it does not fit the exact components
            return
        raise
    if not report.exact:  # it cannot be listed, and an estimate proves nothing to eight digits
        return
    expected = [known.get(entry.claims.scale) for known in report.scales]  # None: a text that cannot be evaluated
    scales = [measured.scale for measured in report.measured]
    right = all(_matches(scale, value) for scale, value in zip(scales, expected, strict=True))
    if not (right and report.relative_bias_after_scale < TOLERANCE):
        problem = (
            f"is registered as unbiased with scale {entry.claims.scale}, but its expected gradient has the scale "
            f"{report.scale:.4g} and is off by {report.relative_bias_after_scale:.2g} of the true one beyond that"
        )
        fail(name, problem, "correct the estimator, or register unbiased=False, or another scale= or condition under=")


def _matches(scale: float | None, expected: float | None) -> bool:
    if scale is None or expected is None:
        return scale is not None and scale > 0
    return abs(scale - expected) < TOLERANCE


def audited(kind: str, component: Any) -> AuditReport:
    """The audit of a component among exact ones, on problems with and without an end of text."""
    sampler = RandomOrder(3)
    problems = [Problem(vocab=2, length=3, seed=3), Problem(vocab=2, length=3, tokens_per_step=2, eos=True, seed=4)]
    algorithm = exact_algorithm(sampler, **{kind: component})
    return audit_algorithm(algorithm, problems=problems, attribution=False, batches=50)


CHECKS = (check_claim,)
