"""The exact components, which do not bias the gradient; other components are measured among them.

Likelihood StepLogProb, selector AllSteps, advantage LeaveOneOut unless the sampler names another, loss Reinforce.
"""

from __future__ import annotations

from typing import TypedDict

from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.algorithm.algorithm import Fillings, GradientEstimator, Swaps
from dlmrl_kit.audit.actions import AuditError
from dlmrl_kit.core.registry import Claims, registered
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.losses.base import Objective
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.base import Selector

EXACT: dict[str, type] = {
    "likelihood": StepLogProb,
    "selector": AllSteps,
    "advantage": LeaveOneOut,
    "loss": Reinforce,
}
"""By slot that can bias the gradient, the component that does not."""


class Biasing(TypedDict):
    """The components of an estimator in the slots of ``EXACT``, those that can bias the gradient."""

    likelihood: Likelihood
    selector: Selector
    advantage: Advantage
    loss: Objective


def biasing(estimator: GradientEstimator) -> Biasing:
    """Returns the components in the slots that can bias the gradient."""
    return {
        "likelihood": estimator.likelihood,
        "selector": estimator.selector,
        "advantage": estimator.advantage,
        "loss": estimator.loss,
    }


def exact_swaps(*slots: str) -> Swaps:
    """Returns the exact components for some of the slots in ``EXACT``."""
    exact: Swaps = {}
    if "likelihood" in slots:
        exact["likelihood"] = StepLogProb()
    if "selector" in slots:
        exact["selector"] = AllSteps()
    if "advantage" in slots:
        exact["advantage"] = LeaveOneOut()
    if "loss" in slots:
        exact["loss"] = Reinforce()
    return exact


def exact_estimator(sampler: Sampler, swaps: Swaps | None = None) -> GradientEstimator:
    """Makes an estimator of exact components around a sampler, without cache, filters and regularisers.

    Args:
        sampler: any.
        swaps: components that take the place of exact ones.

    Raises:
        AuditError: the sampler names an exact advantage that is none.
    """
    advantage = sampler.exact_advantage() or LeaveOneOut()
    if not isinstance(advantage, Advantage):
        name, got = type(sampler).__name__, type(advantage).__name__
        raise AuditError(f"{name}.exact_advantage returns {got}; return an advantage, or None for LeaveOneOut")
    exact: Fillings = {
        "sampler": sampler,
        "cache": None,
        "filter": (),
        "selector": AllSteps(),
        "advantage": advantage,
        "likelihood": StepLogProb(),
        "correction": None,
        "value": (),
        "loss": Reinforce(),
        "regulariser": (),
    }
    return GradientEstimator(**(exact | (swaps or Swaps())))


def claims_of(component: object) -> Claims | None:
    """Returns what the component's class claims in the registry; None if it is not registered."""
    return next((entry.claims for entry in registered() if entry.cls is type(component)), None)
