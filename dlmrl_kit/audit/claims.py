"""Judges a component by its own claims: alone among exact components, does it have the gradient that it promises?

unbiased=True, scale=s    means    E g = s * grad J

This is the only referee of claims, for the kit's components and for plugins (``dlmrl_kit.testing``). A selector must be
measured on problems with more steps than it keeps. It is scaled to the small problems by its method ``resized``; if it
keeps every step there all the same, it is measured unscaled on a problem that is large enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.advantages.monte_carlo import MonteCarlo
from dlmrl_kit.advantages.step_gae import StepGAE
from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit.auditing import audit_algorithm
from dlmrl_kit.audit.exact import claims_of, exact_estimator
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.audit.report import AuditReport
from dlmrl_kit.audit.scale import TOLERANCE, evaluated
from dlmrl_kit.audit.sizes import GROUP_SIZE, first_left_out
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import SELECTED_OLD_VALUE, SELECTED_TOKEN_ADVANTAGE, SEQUENCE_LENGTH
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.losses.base import Objective
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.values.token_value import TokenValue

STEPS = 16
"""Denoising steps that components' settings are taken to be made for; small problems scale them in proportion."""

MOST_LISTED = 9
"""Steps of the longest trajectories, over two tokens, that are listed."""

PROBLEMS = (
    Problem(vocab=2, length=3, policy="network", seed=5),
    Problem(vocab=2, length=4, block_length=2, reward="parity", seed=7),
    Problem(vocab=2, length=3, tokens_per_step=2, eos=True, seed=4),
)


def audit_component(component: Component, problems: Sequence[Problem] = PROBLEMS) -> AuditReport:
    """Audits one component among exact ones, with the most demanding sampler that its claim can be about.

    This is ``LowConfidence`` at temperature 0.8. It is ``EntropyOrder`` for a likelihood that is not exact with the
    former, and for a component that needs log-probabilities of single tokens.

    Args:
        component: a selector, an advantage, a likelihood or a loss.
        problems: to measure on.

    Raises:
        RecipeError: the component does not fit the exact ones.
        TypeError: it is a component of another kind.
    """
    hard, easy = LowConfidence(STEPS, temperature=0.8), EntropyOrder(STEPS, temperature=0.8)
    own, others = _swap(component), companions(component)
    if "likelihood" in others:
        return _audit(easy, problems, others | own)
    try:
        report = _audit(hard, problems, others | own)
    except RecipeError:
        if isinstance(component, Likelihood):
            raise
        return _audit(easy, problems, Swaps(likelihood=StepTokenLogProb()) | own)
    if isinstance(component, Likelihood) and not report.unbiased:
        return _audit(easy, problems, own)
    return report


def _swap(component: Component) -> Swaps:
    if isinstance(component, Selector):
        return Swaps(selector=component)
    if isinstance(component, Advantage):
        return Swaps(advantage=component)
    if isinstance(component, Likelihood):
        return Swaps(likelihood=component)
    if isinstance(component, Objective):
        return Swaps(loss=component)
    raise TypeError(f"{type(component).__name__} makes no claim about the gradient by itself")


def companions(component: Component) -> Swaps:
    """Returns other components that one needs to run: those that write token advantages, lengths or values it reads."""
    reads = set(component.in_keys)
    if SELECTED_TOKEN_ADVANTAGE in reads:
        return Swaps(likelihood=StepMerge(), advantage=StepGAE(), value=[TokenValue()])
    if SEQUENCE_LENGTH in reads:
        return Swaps(likelihood=StepMerge())
    return Swaps(value=[TokenValue()]) if SELECTED_OLD_VALUE in reads else Swaps()


def _audit(sampler: Sampler, problems: Sequence[Problem], swaps: Swaps, group_size: int = GROUP_SIZE) -> AuditReport:
    estimator = exact_estimator(sampler, swaps)
    return audit_algorithm(estimator, problems=problems, group_size=group_size, attribution=False)


def audit_unscaled(selector: Selector) -> AuditReport | None:
    """Audits a selector with its own settings, on the smallest problem on which it leaves out a step.

    Groups have one sample, so that trajectories of up to ``MOST_LISTED`` steps can be listed.

    Returns:
        The report; None if the selector keeps all steps of trajectories of that length.
    """
    steps = first_left_out(exact_estimator(LeftToRight(STEPS), Swaps(selector=selector)))
    if steps is None or steps > MOST_LISTED:
        return None
    problem = Problem(vocab=2, length=steps, policy="network", seed=5)
    swaps = Swaps(selector=selector, advantage=MonteCarlo(n=1, n_baseline=1))
    return _audit(LeftToRight(steps), [problem], swaps, group_size=1)


def _refuting(selector: Selector) -> AuditReport | None:
    """Returns the audit of a selector at its own size if it finds a bias; None if it does not."""
    report = audit_unscaled(selector)
    return report if report is not None and report.refuted and not report.unlike else None


def broken_claim(component: Component) -> str:
    """Says in one sentence which claim of a component is false; "" if its claims are true or it makes none.

    A component that claims to be biased is not refuted by being unbiased here.

    Raises:
        RecipeError: the component does not fit the exact ones.
    """
    claims = claims_of(component)
    about_gradient = isinstance(component, (Selector, Advantage, Likelihood, Objective))
    if not about_gradient or claims is None or not claims.unbiased:
        return ""
    name = type(component).__name__
    report = audit_component(component)
    if report.unlike and isinstance(component, Selector):
        report = _refuting(component) or report
    if report.unlike or math.isnan(report.relative_bias):
        return f"{name} claims to be unbiased, which cannot be audited: {report.verdict}"
    if report.refuted:
        return f"{name} claims to be unbiased; the audit finds: {report.verdict}"
    if not report.exact:
        return ""
    claimed = evaluated(claims.scale, {"G": float(report.group_size)})
    if claimed is not None and abs(report.scale - claimed) > TOLERANCE:
        return f"{name} claims the scale {claims.scale} = {claimed:.6g}; the audit finds {report.scale:.6g}"
    return ""
