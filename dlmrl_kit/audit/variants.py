"""Lists the possible causes of a bias, and makes estimators with one cause alone or with one cause left out."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import Tensor

from dlmrl_kit.algorithm.algorithm import GradientEstimator, Swaps
from dlmrl_kit.audit.exact import EXACT, biasing, claims_of, exact_estimator, exact_swaps
from dlmrl_kit.core.keys import SELECTED_LOG_PROB, Key
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.likelihoods.segments import SegmentLikelihood
from dlmrl_kit.likelihoods.steps import Replay, StepLikelihood, StepLogProb
from dlmrl_kit.samplers.base import Sampler


@dataclass(frozen=True)
class Cause:
    """A component, or a part of one, that may bias the gradient.

    Attributes:
        slot: where it is.
        component: what it is called.
        words: says what it does.
        only: components that have this cause but no other of their slot; None if it cannot be had alone.
        without: components that leave out this cause but no other.
    """

    slot: str
    component: str
    words: str
    only: Swaps | None
    without: Swaps


class Shifted(StepLikelihood):
    """The exact log-probability with one mistake, which ``kept`` makes and ``left`` does not: exact + kept - left.

    Args:
        kept: a likelihood with the mistake.
        left: the same likelihood without it.
    """

    def __init__(self, kept: StepLikelihood, left: StepLikelihood) -> None:
        super().__init__()
        self.terms: list[tuple[int, StepLikelihood]] = [(1, StepLogProb()), (1, kept), (-1, left)]

    def estimate(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> dict[Key, Tensor]:
        """Computes only ``("selected", "log_prob")``."""
        found = [sign * term.estimate(steps, policy, sampler)[SELECTED_LOG_PROB] for sign, term in self.terms]
        return {SELECTED_LOG_PROB: found[0] + found[1] + found[2]}


def swapped(estimator: GradientEstimator, swaps: Swaps | None = None) -> GradientEstimator:
    """Returns the estimator with ``swaps``, and without its regularisers unless they are among these."""
    return GradientEstimator(**(estimator.fillings | Swaps(regulariser=()) | (swaps or Swaps())))


def alone(estimator: GradientEstimator, *kept: Swaps) -> GradientEstimator:
    """Makes an estimator of exact components but for some causes, given as ``Cause.only``."""
    swaps: Swaps = {}
    for some in kept:
        swaps |= some
    return exact_estimator(estimator.sampler, swaps)


def causes(estimator: GradientEstimator) -> list[Cause]:
    """Lists what may bias an estimator: the components that are not the exact ones, split into parts if possible."""
    found = _segment_causes(estimator)
    together = {slot for cause in found for slot in cause.without}
    own = estimator.fillings
    for slot, part in biasing(estimator).items():
        # A subclass of the exact component may do something else, so only the class itself is exact.
        if type(part) is EXACT[slot] or slot in together:
            continue
        if isinstance(part, StepLikelihood) and not part.sampling_temperature:
            found += _likelihood_causes(part)
        else:
            kept: Swaps = {slot: own[slot]}  # type: ignore[misc]
            found.append(Cause(slot, type(part).__name__, _words(slot, part), kept, exact_swaps(slot)))
    for name, filling in estimator.declared.items():
        parts = ", ".join(type(part).__name__ for part in filling)
        words = f"a {name} comes between the rollout and the loss"
        kept_too, left_out = cast(Swaps, {name: filling}), cast(Swaps, {name: []})
        found.append(Cause(name, parts, words, kept_too, left_out))
    if estimator.cache is not None:
        cached = Swaps(cache=estimator.cache, correction=estimator.correction)
        name = f"{type(estimator.cache).__name__}, {type(estimator.correction).__name__}"
        words = "sampled from another distribution than the policy, and not corrected completely"
        found.append(Cause("cache", name, words, cached, Swaps(cache=None, correction=None)))
    if estimator.filters:
        names = ", ".join(type(part).__name__ for part in estimator.filters)
        words = "groups are left out by their rewards"
        found.append(Cause("filter", names, words, Swaps(filter=estimator.filters), Swaps(filter=())))
    return found


def _segment_causes(estimator: GradientEstimator) -> list[Cause]:
    """Lists the causes of a likelihood of segments; a selector that makes the segments is judged together with it."""
    likelihood, selector = estimator.likelihood, estimator.selector
    if not isinstance(likelihood, SegmentLikelihood):
        return []
    scored = at_sampling_temperature(likelihood)
    kept, exact, name = Swaps(likelihood=scored), exact_swaps("likelihood"), type(likelihood).__name__
    words = "another log-probability than that of the actions taken"
    if selector.segments:
        kept["selector"] = selector
        exact = exact_swaps("likelihood", "selector")
        words = "a segment's log-probability is not that of the actions taken in it"
        name = f"{name} on {type(selector).__name__}"
    found = [Cause("likelihood", name, words, kept, exact)]
    if not likelihood.sampling_temperature:
        missing = "temperature and filters missing from the log-probability"
        component = f"{type(likelihood).__name__} (sampling_temperature=False)"
        found.append(Cause("likelihood", component, missing, None, Swaps(likelihood=scored)))
    return found


def _likelihood_causes(part: StepLikelihood) -> list[Cause]:
    name = type(part).__name__
    scored = at_sampling_temperature(part)
    mistake = Shifted(part, scored)
    temperature, order = "sampling_temperature=False", "order term"
    return [
        Cause(
            "likelihood",
            f"{name} ({order})",
            "order term missing: the log-probability leaves out why these positions were committed",
            Swaps(likelihood=scored),
            Swaps(likelihood=mistake),
        ),
        Cause(
            "likelihood",
            f"{name} ({temperature})",
            "temperature and filters missing from the log-probability",
            Swaps(likelihood=mistake),
            Swaps(likelihood=scored),
        ),
    ]


L = TypeVar("L", bound=Likelihood)


def at_sampling_temperature(likelihood: L) -> L:
    """Returns a copy that scores with the sampler's behaviour distribution."""
    scored = copy.copy(likelihood)
    scored.sampling_temperature = True
    return scored


def _words(slot: str, part: object) -> str:
    claims = claims_of(part)
    if slot == "likelihood":
        return "order term missing, or another log-probability than the sampler's"
    if claims is not None and claims.unbiased is False and claims.under:
        return claims.under
    if slot == "selector":
        return "steps dropped, or weights that do not stand for the steps left out"
    return f"not the gradient of {EXACT[slot].__name__}" if slot == "loss" else "not a baseline of the state alone"
