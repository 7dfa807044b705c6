"""The claims that a comparison tests: whether one algorithm is better than another by more than a difference.

A claim is about the final accuracy on one task, in pairs of runs with the same seed, by Student's distribution. Where
there are several, each interval covers 1 - 0.05 / n (Bonferroni), so that all hold at once with 95%. Pairs that all
differ by the same have no such interval: the exact test of signs decides, at the same level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlmrl_kit.experiments.aggregate import Estimate
from dlmrl_kit.experiments.evaluation_files import percent
from dlmrl_kit.experiments.referee.outcomes import Outcome
from dlmrl_kit.experiments.referee.spec import Claim
from dlmrl_kit.experiments.referee.statistics import mean, needed, p_value_if_alike, without_interval

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
TITLES = ("claim", "task", "better", "worse", "by", "verdict", "difference", "low", "high", "pairs", "detectable")


@dataclass(frozen=True)
class Verdict:
    """What a comparison says about a claim on a task.

    Attributes:
        claim, task: what is claimed, and where.
        difference: of final accuracies, the better one's minus the worse one's, with the interval of all claims;
            without one for fewer than two pairs, and where all differ by the same.
        verdict: ``HOLDS`` where the whole interval is above what is claimed, ``FAILS`` where none of it is,
            ``UNKNOWN`` otherwise, and for fewer than two pairs. Where all n pairs differ by the same, 2^(1 - n) must be
            at most 0.05 over the number of claims for one of the first two.
        detectable: how far above what is claimed the difference must be to be found by as many pairs with probability
            0.8; None for fewer than two pairs, or where all differ by the same.
    """

    claim: Claim
    task: str
    difference: Estimate
    verdict: str
    detectable: float | None


def verdicts(claims: Sequence[Claim], outcomes: Sequence[Outcome]) -> list[Verdict]:
    """Returns what is to be said about every claim on every task that it is about."""
    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    asked = [(claim, task) for claim in claims for task in tasks if claim.task in (None, task)]
    finals = {(run.task, run.recipe, run.seed): run.final for run in outcomes if run.curve}
    return [_verdict(claim, task, finals, 0.05 / len(asked)) for claim, task in asked]


def _verdict(claim: Claim, task: str, finals: dict[tuple[str, str, int], float], error: float) -> Verdict:
    """Returns what is to be said about a claim on a task, wrongly with at most this probability."""
    seeds = [seed for own, name, seed in finals if (own, name) == (task, claim.better)]
    pairs = [
        finals[task, claim.better, seed] - finals[task, claim.worse, seed]
        for seed in seeds
        if (task, claim.worse, seed) in finals
    ]
    found, alike = mean(pairs, 1 - error), p_value_if_alike(pairs, claim.by)
    if found.mean is None or found.low is None or found.high is None:  # fewer than two pairs
        return Verdict(claim, task, found, UNKNOWN, None)
    if alike is not None:
        verdict = UNKNOWN if alike > error else HOLDS if found.mean > claim.by else FAILS
        return Verdict(claim, task, without_interval(found), verdict, None)
    verdict = HOLDS if found.low > claim.by else FAILS if found.high <= claim.by else UNKNOWN
    return Verdict(claim, task, found, verdict, needed(pairs, 1 - error))


def claims_table(found: Sequence[Verdict]) -> list[list[str]]:
    """Returns a table for people: a row of titles, then one for each claim on each task, in points."""
    titles = ["claim", "task", "verdict", "difference", "detectable", "pairs"]
    return [titles, *(_cells(verdict) for verdict in found)]


def _cells(found: Verdict) -> list[str]:
    text = found.claim.text + (f" (by {100 * found.claim.by:g} points)" if found.claim.by else "")
    shown = "-" if found.detectable is None else f"{100 * found.detectable:.1f}"
    return [text, found.task, found.verdict, percent(found.difference, "+"), shown, str(found.difference.n)]


def claims_rows(found: Sequence[Verdict]) -> list[Sequence[object]]:
    """Returns a row of titles, then one for each claim on each task, with all digits."""
    return [
        TITLES,
        *(
            (
                *(each.claim.text, each.task, each.claim.better, each.claim.worse, each.claim.by, each.verdict),
                *(each.difference.mean, each.difference.low, each.difference.high, each.difference.n, each.detectable),
            )
            for each in found
        ),
    ]
