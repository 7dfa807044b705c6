"""The statistics of a comparison: intervals over seeds, paired differences, ranks.

Intervals are Student's, at 95%. The p-values of paired differences are adjusted for how many there are by the method of
Benjamini and Hochberg, which bounds the share of false discoveries. The interval of a mean rank is by the bootstrap.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlmrl_kit.experiments.aggregate import Estimate, interval
from dlmrl_kit.experiments.referee.outcomes import Outcome, Point

POWER = 0.8
"""The probability with which a difference that is said to be detectable would have been found."""
SAME = 1e-9
"""Differences that are as near to each other are equal but for rounding."""


@dataclass(frozen=True)
class Difference:
    """An algorithm's final accuracy minus the base's, paired by seed.

    Attributes:
        value: the mean with its interval; without one where all pairs differ by the same.
        p_value: of the paired t test, adjusted; of the exact test of signs, 2^(1 - n), where all n pairs differ by the
            same; None for fewer than two pairs.
        detectable: the difference that as many seeds would have shown with probability ``POWER``; None as before, and
            where all pairs differ by the same.
    """

    value: Estimate
    p_value: float | None
    detectable: float | None


@dataclass(frozen=True)
class Row:
    """What an algorithm came to on a task.

    Attributes:
        task, recipe, settings: what was run.
        finished, failed, collapsed: numbers of runs; a failed run is a collapsed one, too.
        before, final, best: accuracies before training, at the end, and of the model that validation chose.
        area: mean accuracy over the budget.
        half: accuracy at half of the budget.
        deviation: standard deviation of the final accuracy over seeds; None for one run.
        forwards, tokens: means over runs.
        seconds: of the CPU, the mean over runs whose updates were all measured; None if there are none.
        difference: to the base; None for the base itself.
    """

    task: str
    recipe: str
    settings: str
    finished: int
    failed: int
    collapsed: int
    before: Estimate
    final: Estimate
    best: Estimate
    area: Estimate
    half: Estimate
    deviation: float | None
    forwards: float
    tokens: float
    seconds: float | None
    difference: Difference | None


def mean(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Returns the mean of values with Student's interval, by default at 95%."""
    from scipy.stats import t

    if not values:
        return Estimate(None, None, None, 0)
    centre = math.fsum(values) / len(values)
    spread = deviation(values)
    if spread is None:
        return Estimate(centre, None, None, 1)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * (spread / math.sqrt(len(values)))
    return Estimate(centre, centre - half, centre + half, len(values))


def accuracy_at(curve: Sequence[Point], forwards: float) -> float:
    """Returns the accuracy after some forwards, between evaluations by a straight line, behind the last one its own."""
    import numpy as np

    return float(np.interp(forwards, [p.forwards for p in curve], [p.accuracy for p in curve]))


def area(curve: Sequence[Point], budget: float) -> float:
    """Returns the mean accuracy over the budget: the area under the curve of ``accuracy_at``, over its width."""
    from scipy.integrate import trapezoid

    places = sorted({0.0, float(budget), *(p.forwards for p in curve if p.forwards < budget)})
    values = [accuracy_at(curve, place) for place in places]
    return float(trapezoid(values, places)) / budget


def rows(outcomes: Sequence[Outcome], base: str, budget: float) -> list[Row]:
    """Returns a row for each algorithm on each task, in the order of the outcomes."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.task, outcome.recipe), []).append(outcome)
    made = [_row(own, found.get((task, base), []), base, budget) for (task, _), own in found.items()]
    return _adjusted(made)


def _row(runs: Sequence[Outcome], base: Sequence[Outcome], name: str, budget: float) -> Row:
    counted = [run for run in runs if run.curve]
    best = [run.best for run in counted if run.best is not None]
    finals = [run.final for run in counted]
    first = runs[0]
    return Row(
        task=first.task,
        recipe=first.recipe,
        settings=first.settings,
        finished=sum(run.status == "finished" for run in runs),
        failed=sum(run.status == "failed" for run in runs),
        collapsed=sum(not run.curve or run.collapsed for run in runs),
        before=mean([run.before for run in counted]),
        final=mean(finals),
        best=mean(best),
        area=mean([area(run.curve, budget) for run in counted]),
        half=mean([accuracy_at(run.curve, budget / 2) for run in counted]),
        deviation=deviation(finals),
        forwards=math.fsum(run.curve[-1].forwards for run in counted) / max(1, len(counted)),
        tokens=math.fsum(run.curve[-1].tokens for run in counted) / max(1, len(counted)),
        seconds=mean([run.seconds for run in counted if run.seconds is not None]).mean,
        difference=None if first.recipe == name else _difference(counted, base),
    )


def deviation(values: Sequence[float]) -> float | None:
    """Returns the standard deviation of values, with n - 1; None for fewer than two."""
    import numpy as np

    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _difference(runs: Sequence[Outcome], base: Sequence[Outcome]) -> Difference:
    from scipy.stats import ttest_1samp

    others = {run.seed: run.final for run in base if run.curve}
    pairs = [run.final - others[run.seed] for run in runs if run.seed in others]
    if len(pairs) < 2:
        return Difference(mean(pairs), None, None)
    alike = p_value_if_alike(pairs)
    if alike is not None:
        return Difference(without_interval(mean(pairs)), alike, None)
    return Difference(mean(pairs), float(ttest_1samp(pairs, 0.0).pvalue), needed(pairs))


def without_interval(found: Estimate) -> Estimate:
    """Returns a mean of values that are all the same: they have no spread to make an interval of."""
    return replace(found, low=None, high=None)


def p_value_if_alike(pairs: Sequence[float], other: float = 0.0) -> float | None:
    """Returns the p-value of the exact test of signs, 2^(1 - n), where all n pairs are the same; else None.

    The t test divides by their deviation: few seeds and examples may differ alike by chance. It is 1 where they are the
    ``other`` value, which they are compared with.
    """
    spread = deviation(pairs)
    if spread is None or spread >= SAME:
        return None
    return 1.0 if abs(pairs[0] - other) < SAME else 2.0 ** (1 - len(pairs))


def needed(pairs: Sequence[float], level: float = 0.95) -> float | None:
    """Returns the difference that as many pairs with this deviation would have shown; see ``detectable``.

    None: there are fewer than two pairs.
    """
    spread = deviation(pairs)
    return None if spread is None else detectable(len(pairs), level) * spread / math.sqrt(len(pairs))


@functools.cache
def detectable(number: int, level: float = 0.95) -> float:
    """Returns how many standard errors the mean of ``number`` pairs must be from 0 to be found with ``POWER``.

    "Found" is by the two-sided t test at 1 - ``level``; solved by the noncentral t distribution.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    degrees = number - 1
    bar = float(t.ppf((1 + level) / 2, degrees))

    def lack(errors: float) -> float:
        return POWER - float(nct.sf(bar, degrees, errors))  # that the wrong sign is found is next to impossible

    return float(brentq(lack, 0.0, 2 * (bar + float(t.ppf(POWER, degrees)))))


def _adjusted(made: Sequence[Row]) -> list[Row]:
    """Adjusts the p-values for how many there are."""
    from scipy.stats import false_discovery_control

    known = {place: row.difference for place, row in enumerate(made) if row.difference is not None}
    raw = {place: found.p_value for place, found in known.items() if found.p_value is not None}
    result = list(made)
    if raw:
        for place, value in zip(raw, false_discovery_control(list(raw.values())), strict=True):
            result[place] = replace(made[place], difference=replace(known[place], p_value=float(value)))
    return result


def ranks(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Returns the mean rank of each algorithm by final accuracy, 1 being the best, over tasks and seeds.

    A run that failed before its first evaluation ranks last. Only tasks and seeds that all algorithms have count.
    """
    from scipy.stats import rankdata

    recipes = list(dict.fromkeys(outcome.recipe for outcome in outcomes))
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for outcome in outcomes:
        value = outcome.final if outcome.curve else -1.0
        cells.setdefault((outcome.task, outcome.seed), {})[outcome.recipe] = value
    table = [
        rankdata([-cell[recipe] for recipe in recipes]).tolist()
        for cell in cells.values()
        if cell.keys() == set(recipes)
    ]
    if not table:
        return {}
    means = [math.fsum(column) / len(table) for column in zip(*table, strict=True)]
    if len(table) < 2:
        return {recipe: Estimate(value, None, None, 1) for recipe, value in zip(recipes, means, strict=True)}
    low, high = interval(table)
    return {
        recipe: Estimate(value, low[place], high[place], len(table))
        for place, (recipe, value) in enumerate(zip(recipes, means, strict=True))
    }
