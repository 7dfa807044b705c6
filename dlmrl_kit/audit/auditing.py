"""Audits a recipe: measures it on several problems, then each cause of a bias alone and the recipe without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm, GradientEstimator
from dlmrl_kit.audit.actions import AuditError
from dlmrl_kit.audit.attribution import Attribution, Interaction, attribution, interaction
from dlmrl_kit.audit.later_steps import LaterStep, audit_later_steps, summed_up
from dlmrl_kit.audit.measure import Ground, Measured
from dlmrl_kit.audit.on_problem import OnProblem
from dlmrl_kit.audit.problem import Problem, random_problems
from dlmrl_kit.audit.regularisers import RegulariserAudit, audit_regularisers, combined
from dlmrl_kit.audit.report import AuditReport
from dlmrl_kit.audit.scale import known_scales
from dlmrl_kit.audit.scope import scope_of
from dlmrl_kit.audit.sizes import Scaled, kept_whole, scaled_texts, shrunk, unscaled_words
from dlmrl_kit.audit.variants import Cause, alone, causes, swapped
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import STEP_LOG_PROB
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.trainers.trainer import Trainer


@dataclass(frozen=True)
class Options:
    """The settings of an audit.

    Args:
        problems: the problems, or how many random ones to make (``random_problems``).
        seed: of random problems, and of sampling where trajectories cannot be listed.
        group_size: G.
        attribution: whether to measure the causes of a bias one by one, too.
        batches: how many batches to sample where groups cannot be listed.
        prompts_per_update: groups of a batch. It matters wherever groups meet: in what a filter leaves, and in a
            denominator that counts tokens or steps.
        later_steps: whether to audit the optimiser steps after the first one on a rollout, too.
    """

    problems: int | Sequence[Problem] = 4
    seed: int = 0
    group_size: int = 2
    attribution: bool = True
    batches: int = 400
    prompts_per_update: int = 2
    later_steps: bool = False


def audit_recipe(
    recipe: str | os.PathLike[str],
    *,
    sets: Iterable[str] = (),
    uses: Iterable[str] = (),
    allow_imports: bool = False,
    problems: int | Sequence[Problem] = 4,
    seed: int = 0,
    group_size: int = 2,
    attribution: bool = True,
    batches: int = 400,
    prompts_per_update: int | None = None,
    later_steps: bool = False,
) -> AuditReport:
    """Audits a recipe, as ``dlmrl audit`` does.

    Args:
        recipe: its name or path.
        sets, uses, allow_imports: as ``load_recipe``.
        problems, seed, group_size, attribution, batches, later_steps: as ``Options``.
        prompts_per_update: as ``Options``; None: that of the recipe's trainer.

    Raises:
        RecipeError: the recipe cannot be loaded.
        AuditError: it is a pre-training recipe, or as ``audit_algorithm``.
        UserError: as ``audit_algorithm``.
    """
    loaded = load_recipe(recipe, sets=sets, uses=uses, allow_imports=allow_imports)
    built = loaded.build()
    if not isinstance(built, Algorithm):
        raise AuditError(f"{loaded.name} is a {loaded.root} recipe: it has no policy gradient to audit")
    report = audit_algorithm(
        built,
        name=loaded.name,
        problems=problems,
        seed=seed,
        group_size=group_size,
        attribution=attribution,
        batches=batches,
        prompts_per_update=prompts_per_update,
        later_steps=later_steps,
    )
    report.notes[:0] = loaded.notes
    return report


def audit_algorithm(
    algorithm: GradientEstimator,
    *,
    name: str = "",
    problems: int | Sequence[Problem] = 4,
    seed: int = 0,
    group_size: int = 2,
    attribution: bool = True,
    batches: int = 400,
    prompts_per_update: int | None = None,
    later_steps: bool = False,
) -> AuditReport:
    """Audits an algorithm on small problems that stand in for its task and policy.

    Args:
        algorithm: the components; each is scaled to the problems by its own method ``resized``.
        name: of the report.
        problems, seed, group_size, attribution, batches, later_steps: as ``Options``.
        prompts_per_update: as ``Options``; None: that of the algorithm's trainer, 2 without one.

    Raises:
        AuditError: the sampler contradicts its own log-probability, or does not sample from the policy.
        UserError: a component cannot be scaled.
    """
    if STEP_LOG_PROB not in algorithm.sampler.writes():
        sampler = type(algorithm.sampler).__name__
        raise AuditError(f"{sampler} does not sample from the policy: there is no gradient of its reward to audit")
    groups = prompts_per_update
    if groups is None:
        groups = (
            algorithm.trainer.prompts_per_update if isinstance(algorithm, Algorithm) else Options.prompts_per_update
        )
    if groups < 1:
        raise AuditError(f"prompts_per_update must be at least 1, got {groups}")
    with _one_thread():
        return _audit(algorithm, name, Options(problems, seed, group_size, attribution, batches, groups, later_steps))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within the context torch uses one thread, which is faster for tensors as tiny as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Place:
    """One problem of an audit, with the algorithm scaled to its size and measured on it."""

    def __init__(self, algorithm: GradientEstimator, problem: Problem, options: Options) -> None:
        self.small, self.scaled = shrunk(algorithm, problem)
        sampler = self.small.sampler
        self.ground = Ground(
            problem, sampler, options.group_size, options.batches, options.seed, groups=options.prompts_per_update
        ).prepare()
        self.measured = self.ground.measure(swapped(self.small))

    def alone(self, *found: Cause) -> Measured | None:
        """Measures causes alone among exact components; None if they do not fit together, or one cannot be alone."""
        kept = [cause.only for cause in found if cause.only is not None]
        if len(kept) < len(found):
            return None
        return self._measured(lambda: alone(self.small, *kept))

    def without(self, cause: Cause) -> Measured | None:
        """Measures the algorithm without a cause; None if the components do not fit together."""
        return self._measured(lambda: swapped(self.small, cause.without))

    def later_steps(self, trainer: Trainer) -> list[LaterStep]:
        """Audits the optimiser steps after the first one; none where trajectories cannot be listed."""
        small = OnProblem(swapped(self.small), self.ground.problem)
        return audit_later_steps(small, self.ground, self.measured, trainer)

    def _measured(self, build: Callable[[], GradientEstimator]) -> Measured | None:
        try:
            return self.ground.measure(build())
        except RecipeError:
            return None


def _audit(algorithm: GradientEstimator, name: str, options: Options) -> AuditReport:
    chosen = options.problems
    if isinstance(chosen, int):
        chosen = random_problems(chosen, options.seed, deep=algorithm.cache is not None)
    places = [_Place(algorithm, problem, options) for problem in chosen]
    report = AuditReport(
        name,
        [place.measured for place in places],
        sampler=type(algorithm.sampler).__name__,
        group_size=options.group_size,
        prompts_per_update=options.prompts_per_update,
        scope=scope_of(algorithm, options.group_size, options.prompts_per_update),
    )
    for place in places:
        tokens = float(options.group_size * place.ground.problem.length)
        report.scales.append(known_scales(place.small, options.group_size, tokens))
    report.unlike = kept_whole(algorithm, [OnProblem(p.small, p.ground.problem) for p in places], options.group_size)
    unscaled = unscaled_words(algorithm, [place.small for place in places])
    if not (report.unlike or report.refuted):  # what is biased although it is less limited here is biased
        report.unlike = unscaled
    if options.attribution and places:
        report.attribution, report.interaction = _attributed(places, report)
    report.regularisers = _regularisers(places)
    if options.later_steps and isinstance(algorithm, Algorithm):
        own = (place.later_steps(algorithm.trainer) for place in places)
        report.later_steps = summed_up(list(own))
    report.notes = _notes(places)
    if unscaled and unscaled != report.unlike:
        report.notes.append(unscaled)
    return report


def _attributed(places: list[_Place], report: AuditReport) -> tuple[list[Attribution], Interaction | None]:
    """Attributes the bias to its causes, and finds two of them that interact."""
    listed = [causes(place.small) for place in places]
    by_cause = list(zip(*listed, strict=True))
    found = [
        attribution(
            same[-1],
            [place.alone(cause) for place, cause in zip(places, same, strict=True)],
            [place.without(cause) for place, cause in zip(places, same, strict=True)],
            report.scales[-1],
        )
        for same in by_cause
    ]

    def together(first: int, second: int) -> list[Measured | None]:
        return [place.alone(own[first], own[second]) for place, own in zip(places, listed, strict=True)]

    return found, interaction(report.measured, listed[-1], found, together)


def _regularisers(places: list[_Place]) -> dict[str, RegulariserAudit]:
    found: dict[str, list[RegulariserAudit]] = {}
    for place in places:
        for term, audit in audit_regularisers(place.small, place.ground).items():
            found.setdefault(term, []).append(audit)
    return {term: combined(audits) for term, audits in found.items()}


def _notes(places: list[_Place]) -> list[str]:
    """Says what was scaled, and why groups were sampled if they were."""
    scaled: list[Scaled] = [one for place in places for one in place.scaled]
    reasons = dict.fromkeys(reason for place in places for reason in place.ground.reasons)
    return [*scaled_texts(scaled), *(f"sampled, not listed: {reason}" for reason in reasons)]
