"""The audit of a recipe: measure it on several problems, then each cause alone and the recipe without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.audit.enumeration import AuditError
from dlmrl_kit.audit.measure import Ground, Measured
from dlmrl_kit.audit.problem import Problem, random_problems
from dlmrl_kit.audit.regularisers import RegulariserAudit, audit_regularisers, combined
from dlmrl_kit.audit.report import Attribution, AuditReport, Spread
from dlmrl_kit.audit.scale import known_scales, matching
from dlmrl_kit.audit.variants import Cause, causes, exact_algorithm, shrunk, swapped
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import STEP_LOG_PROB
from dlmrl_kit.recipe.load import load_recipe


def audit_recipe(
    recipe: str | os.PathLike[str],
    *,
    sets: Iterable[str] = (),
    uses: Iterable[str] = (),
    allow_imports: bool = False,
    **options: Any,
) -> AuditReport:
    """Audits a recipe by name or path; ``sets``, ``uses`` as ``load_recipe``, ``options`` as ``audit_algorithm``.

    Raises:
        RecipeError: anything wrong with the recipe.
        AuditError: a pre-training recipe, or a sampler that contradicts its own log-probability.
    """
    loaded = load_recipe(recipe, sets=sets, uses=uses, allow_imports=allow_imports)
    algorithm = loaded.build()
    if not isinstance(algorithm, Algorithm):
        raise AuditError(f"{loaded.name} is a {loaded.root} recipe: it has no policy gradient to audit")
    report = audit_algorithm(algorithm, name=loaded.name, **options)
    report.notes[:0] = loaded.notes
    return report


def audit_algorithm(
    algorithm: Algorithm,
    *,
    name: str = "",
    problems: int | Sequence[Problem] = 4,
    seed: int = 0,
    group_size: int = 2,
    attribution: bool = True,
    batches: int = 400,
) -> AuditReport:
    """Audits an algorithm on small problems that stand in for its task and policy.

    Args:
        algorithm: its sampler keeps kind, temperature and filters; lengths and k are those of the problem.
        name: for the report.
        problems: how many random ones (``random_problems``), or which.
        seed: of the random problems, and of Monte Carlo where it is needed.
        group_size: G; a batch is one group of one prompt.
        attribution: also measure the causes one by one.
        batches: groups drawn where they cannot be listed.

    Raises:
        AuditError: a sampler that contradicts its own log-probability, or one that does not sample from the policy.
    """
    if STEP_LOG_PROB not in algorithm.sampler.written_keys():
        sampler = type(algorithm.sampler).__name__
        raise AuditError(f"{sampler} does not sample from the policy: there is no gradient of its reward to audit")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are tiny
    try:
        return _audit(algorithm, name, problems, seed, group_size, attribution, batches)
    finally:
        torch.set_num_threads(threads)


def _audit(
    algorithm: Algorithm,
    name: str,
    problems: int | Sequence[Problem],
    seed: int,
    group_size: int,
    attribution: bool,
    batches: int,
) -> AuditReport:
    deep = algorithm.cache is not None
    chosen = random_problems(problems, seed, deep) if isinstance(problems, int) else list(problems)
    report = AuditReport(name, [], sampler=type(algorithm.sampler).__name__, group_size=group_size)
    found: dict[int, list[tuple[Measured | None, Measured | None]]] = {}
    listed: list[Cause] = []
    terms: dict[str, list[RegulariserAudit]] = {}
    for problem in chosen:
        small, notes = shrunk(algorithm, problem)
        ground = Ground(problem, exact_algorithm(small.sampler).sampler, group_size, batches, seed).prepare()
        report.measured.append(ground.measure(swapped(small)))
        report.scales.append(known_scales(small, group_size, float(group_size * problem.length)))
        listed = causes(small) if attribution else []
        for i, cause in enumerate(listed):
            found.setdefault(i, []).append(_measure_cause(ground, small, cause))
        for term, audit in audit_regularisers(small, ground).items():
            terms.setdefault(term, []).append(audit)
        _add(report.notes, [*notes, *(f"sampled, not listed: {reason}" for reason in ground.reasons)])
    report.regularisers = {term: combined(audits) for term, audits in terms.items()}
    report.attribution = [_attribution(cause, found[i], report.scales[-1]) for i, cause in enumerate(listed)]
    return report


def _add(notes: list[str], more: list[str]) -> None:
    """Adds notes that are not there yet; those that differ only in what follows "becomes" become one."""
    for note in more:
        start, becomes, end = note.partition(" becomes ")
        same = [i for i, old in enumerate(notes) if becomes and old.startswith(start + becomes)]
        if not same:
            notes.extend([note] if note not in notes else [])
        elif end not in notes[same[0]].partition(becomes)[2].split(", "):
            notes[same[0]] += f", {end}"


def _measure_cause(ground: Ground, algorithm: Algorithm, cause: Cause) -> tuple[Measured | None, Measured | None]:
    """The cause alone among exact components, and the recipe without it; None where they do not fit together."""
    only = None
    if (kept := cause.only) is not None:
        only = _measured(ground, lambda: exact_algorithm(algorithm.sampler, **kept))
    return only, _measured(ground, lambda: swapped(algorithm, **cause.without))


def _measured(ground: Ground, build: Callable[[], Algorithm]) -> Measured | None:
    try:
        variant = build()
    except RecipeError:
        return None
    return ground.measure(variant)


def _attribution(
    cause: Cause, found: list[tuple[Measured | None, Measured | None]], known: dict[str, float]
) -> Attribution:
    alone = [only for only, _ in found if only is not None]
    without = [rest for _, rest in found if rest is not None]
    missing = [text for text, have in (("alone", alone), ("without it", without)) if not have]
    scale = Spread.of(m.scale for m in alone)
    bias = Spread.of(m.relative_bias for m in alone)
    words = cause.words
    if alone and all(m.interval is None for m in alone) and bias.max is not None:
        after = Spread.of(m.relative_bias_after_scale for m in alone).max or 0.0
        if bias.max < 1e-8:
            words = "none: exact here"
        elif after < 1e-8 and scale.mean is not None and scale.mean > 0:
            text = matching(scale.mean, known)
            words = f"scales the gradient by {scale.mean:.6g}" + (f" = {text}" if text else "")
    return Attribution(
        cause.slot,
        cause.component,
        words,
        bias,
        Spread.of(m.relative_bias_after_scale for m in alone),
        scale,
        Spread.of(m.relative_bias for m in without),
        Spread.of(m.relative_bias_after_scale for m in without),
        f"not measured {' and '.join(missing)}: the exact components do not write what it reads" if missing else "",
    )
