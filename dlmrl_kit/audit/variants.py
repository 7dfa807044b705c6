"""The recipe on a small problem, and the same recipe with single components swapped for their exact counterparts.

exact: likelihood StepLogProb, selector AllSteps, advantage LeaveOneOut, loss Reinforce
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.sibling_leave_one_out import SiblingLeaveOneOut
from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.core.component import unattached
from dlmrl_kit.core.keys import SELECTED_LOG_PROB, TREE_NODE, Key
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.likelihoods.base import Likelihood, Replay
from dlmrl_kit.likelihoods.segments import SegmentLikelihood
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.base import Selector

EXACT: dict[str, Callable[[], Any]] = {
    "likelihood": StepLogProb,
    "selector": AllSteps,
    "advantage": LeaveOneOut,
    "loss": Reinforce,
}
"""Slots that can bias the gradient, and what does not."""

MAX_DRAWS = 2
"""Steps that a random selector draws on a small problem: its outcomes are listed, and their number grows fast."""


@dataclass(frozen=True)
class Cause:
    """A component, or a part of one, that may bias the gradient.

    ``only``: components that keep this cause and leave out the others of their slot, or None where it cannot be had
    alone; ``without``: those that leave out this one alone.
    """

    slot: str
    component: str
    words: str
    only: dict[str, Any] | None
    without: dict[str, Any]


class Shifted(Likelihood):
    """exact + kept - left: the exact log-probability with the one mistake of ``kept`` that ``left`` does not make."""

    def __init__(self, kept: Likelihood, left: Likelihood) -> None:
        super().__init__()
        self.parts: list[tuple[int, Likelihood]] = [(1, StepLogProb()), (1, kept), (-1, left)]

    @property
    def recorded(self) -> dict[Key, Key]:
        """No sampler records it."""
        return {}

    def estimate(self, steps: Replay, policy: Policy, sampler: Sampler) -> dict[Any, Tensor]:
        """Only ``("selected", "log_prob")``."""
        key = SELECTED_LOG_PROB
        terms = [sign * part.estimate(steps, policy, sampler)[key] for sign, part in self.parts]
        return {key: terms[0] + terms[1] + terms[2]}


def exact_algorithm(sampler: Any, regulariser: Any = None, **swaps: Any) -> Algorithm:
    """An algorithm of exact components around a sampler, without filters and cache, except for ``swaps`` by slot.

    Raises:
        RecipeError: the components do not fit together.
    """
    parts = {slot: make() for slot, make in EXACT.items()}
    if TREE_NODE in sampler.out_keys:  # other leaves of a tree share the sample's own actions
        parts["advantage"] = SiblingLeaveOneOut()
    parts |= swaps
    parts = {slot: [*part] if isinstance(part, list) else copy.copy(part) for slot, part in parts.items()}
    return Algorithm(None, None, copy.copy(sampler), regulariser=regulariser, trainer=None, **parts)


def swapped(algorithm: Algorithm, **swaps: Any) -> Algorithm:
    """The algorithm without regularisers, with ``swaps`` by slot.

    Raises:
        RecipeError: the components do not fit together.
    """
    return exact_algorithm(algorithm.sampler, **(_parts(algorithm) | swaps))


def _parts(algorithm: Algorithm) -> dict[str, Any]:
    others = {"filter": algorithm.filters, "value": algorithm.values, "cache": algorithm.cache}
    return {slot: getattr(algorithm, slot) for slot in (*EXACT, "correction")} | others


RENOISING_STEPS = 2
"""Denoising steps of a block with which the trajectories of a sampler that renoises are few enough to be listed."""


def shrunk(algorithm: Algorithm, problem: Problem) -> tuple[Algorithm, list[str]]:
    """The algorithm with the sizes of the problem, and notes on what was changed."""
    sampler, notes = unattached(algorithm.sampler), []
    accepted = inspect.signature(type(sampler)).parameters
    sizes = {
        "completion_length": problem.length,
        "tokens_per_step": problem.tokens_per_step,
        "block_length": min(problem.block_length or problem.length, problem.length),
        "steps": min(RENOISING_STEPS, getattr(sampler, "steps", RENOISING_STEPS)),
    }
    steps = getattr(sampler, "max_steps", None)
    for name, value in sizes.items():
        if name in accepted and hasattr(sampler, name):
            setattr(sampler, name, value)
    selector = copy.copy(algorithm.selector)
    small = getattr(sampler, "max_steps", None)
    k = getattr(selector, "k", None)
    if isinstance(k, int) and steps and small:
        fewer = max(1, min(round(k * small / steps), small if k >= steps else small - 1))
        if "generator" in getattr(selector, "requires", ()):
            fewer = min(fewer, MAX_DRAWS)
        if fewer != k:
            notes.append(f"{type(selector).__name__}.k = {k} of {steps} steps becomes {fewer} of {small}")
            selector.k = fewer
            if isinstance(selector.slots, int):
                selector.slots = fewer
    regularisers = [copy.copy(term) for term in algorithm.regularisers]
    shrink = getattr(selector, "shrink", None)
    if isinstance(shrink, int) and steps and small:
        selector.shrink = max(1, round(shrink * small / steps))
        if selector.shrink != shrink:
            notes.append(f"{type(selector).__name__}.shrink = {shrink} becomes {selector.shrink}")
    values = [unattached(part) for part in algorithm.values]
    parts = _parts(algorithm) | {"selector": selector, "value": values}
    return exact_algorithm(sampler, regulariser=regularisers, **parts), notes


def causes(algorithm: Algorithm) -> list[Cause]:
    """What may bias this algorithm: each slot that does not hold the exact component, taken apart where possible."""
    found = _segment_causes(algorithm)
    together = {slot for cause in found for slot in cause.without}
    for slot, exact in EXACT.items():
        part = getattr(algorithm, slot)
        if type(part) is exact or slot in together:
            continue
        if slot == "likelihood" and getattr(part, "sampling_temperature", True) is False:
            found += _likelihood_causes(part)
        else:
            found.append(Cause(slot, type(part).__name__, _words(slot, part), {slot: part}, {slot: exact()}))
    if algorithm.cache is not None:
        kept = {"cache": algorithm.cache, "correction": algorithm.correction}
        name = f"{type(algorithm.cache).__name__}, {type(algorithm.correction).__name__}"
        words = "sampled from another distribution than the policy, and not corrected completely"
        found.append(Cause("cache", name, words, kept, dict.fromkeys(kept)))
    if algorithm.filters:
        names = ", ".join(type(part).__name__ for part in algorithm.filters)
        words = "groups are left out by their rewards"
        found.append(Cause("filter", names, words, {"filter": algorithm.filters}, {"filter": None}))
    return found


def _segment_causes(algorithm: Algorithm) -> list[Cause]:
    """A likelihood of segments and what cuts the trajectory into them: exact only as steps, so judged together."""
    likelihood, selector = algorithm.likelihood, algorithm.selector
    if not isinstance(likelihood, SegmentLikelihood):
        return []
    scored = copy.copy(likelihood)
    scored.sampling_temperature = True
    kept, exact, name = {"likelihood": scored}, {"likelihood": StepLogProb()}, type(likelihood).__name__
    words = "another log-probability than that of the actions taken"
    if type(selector).ends is not Selector.ends:
        kept["selector"], exact["selector"] = selector, AllSteps()
        words = "a segment's log-probability is not that of the actions taken in it"
        name = f"{name} on {type(selector).__name__}"
    found = [Cause("likelihood", name, words, kept, exact)]
    if not likelihood.sampling_temperature:
        missing = "temperature and filters missing from the log-probability"
        component = f"{type(likelihood).__name__} (sampling_temperature=False)"
        found.append(Cause("likelihood", component, missing, None, {"likelihood": scored}))
    return found


def _likelihood_causes(part: Any) -> list[Cause]:
    name = type(part).__name__
    scored = copy.copy(part)
    scored.sampling_temperature = True
    mistake = Shifted(part, scored)
    temperature, order = "sampling_temperature=False", "order term"
    return [
        Cause(
            "likelihood",
            f"{name} ({order})",
            "order term missing: the log-probability leaves out why these positions were committed",
            {"likelihood": scored},
            {"likelihood": mistake},
        ),
        Cause(
            "likelihood",
            f"{name} ({temperature})",
            "temperature and filters missing from the log-probability",
            {"likelihood": mistake},
            {"likelihood": scored},
        ),
    ]


def _words(slot: str, part: Any) -> str:
    claims = claims_of(part)
    if slot == "likelihood":
        return "order term missing, or another log-probability than the sampler's"
    if claims is not None and claims.unbiased is False and claims.under:
        return str(claims.under)
    if slot == "selector":
        return "steps dropped, or weights that do not stand for the steps left out"
    return f"not the gradient of {EXACT[slot].__name__}" if slot == "loss" else "not a baseline of the state alone"  # type: ignore[attr-defined]


def claims_of(part: Any) -> Any:
    """The registered ``Claims`` of a component's class, or None."""
    from dlmrl_kit.core.registry import registered

    return next((entry.claims for entry in registered() if entry.cls is type(part)), None)
