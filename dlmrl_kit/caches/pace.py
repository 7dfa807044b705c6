r"""The rule by which a cache's refresh follows measured drift: pure functions of numbers, without a model.

There is a ladder of intervals 1, 2, 4, ... up to the longest. The effective sample size falls as the interval grows,
as the anchors of a longer one are further from the states (``core.window``). The rule climbs a rung after each update
as long as what it measures is good enough, and learns what each rung costs. A rung that is not good enough is refused,
with all above it; then it stays on the cheapest rung below, until it tries again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

EXACT = 1
"""The interval at which a rollout is exact."""


@dataclass(frozen=True)
class Pace:
    """What is known of the intervals.

    Attributes:
        refresh: the interval of the present update, in positions.
        refused: the shortest interval that was not good enough; None: none is known.
        waited: updates since then.
        costs: positions that rollout and correction took with each interval when it was used last, over those of the
            exact rollout.
    """

    refresh: int = EXACT
    refused: int | None = None
    waited: int = 0
    costs: Mapping[int, float] = field(default_factory=dict)


def ladder(longest: int) -> list[int]:
    """Returns the intervals 1, 2, 4, ... below ``longest``, and ``longest`` itself, which is at least 1."""
    powers = [2**n for n in range(longest.bit_length()) if 2**n < longest]
    return [*powers, longest]


def next_pace(
    pace: Pace, effective_sample_size: float, cost: float, *, smallest: float, longest: int, try_again_after: int
) -> Pace:
    """Returns the pace of the next update.

    Args:
        pace: of the present update.
        effective_sample_size: that it measured, a share of its weights in [0, 1].
        cost: positions that its rollout and its correction took, over those of the exact rollout.
        smallest: the smallest acceptable effective sample size.
        longest: the longest interval.
        try_again_after: updates after which an interval that was refused is tried again.
    """
    rungs, refused, waited = ladder(longest), pace.refused, pace.waited + 1
    costs = {**pace.costs, pace.refresh: cost}
    if pace.refresh > EXACT and not effective_sample_size >= smallest:  # NaN is not good enough
        refused, waited = pace.refresh, 0
    elif refused is not None and waited >= try_again_after:
        refused, waited = None, 0
    costs = {rung: known for rung, known in costs.items() if refused is None or rung < refused}
    return Pace(_chosen(rungs, refused, costs), refused, 0 if refused is None else waited, costs)


def reason(before: Pace, after: Pace, effective_sample_size: float, smallest: float) -> str | None:
    """Says why ``next_pace`` changes the interval, in a line for the user; None if it does not.

    Args:
        before, after: the paces of an update and of the next one.
        effective_sample_size, smallest: as ``next_pace``.
    """
    if after.refresh == before.refresh:
        return None
    if after.refused == before.refresh:
        why = f"effective sample size {effective_sample_size:.3g} < {smallest:g}"
        if after.refresh in after.costs:
            why += f"; of shorter intervals it takes the fewest positions, {_in_words(after)}"
    elif before.refused is not None and after.refused is None:
        why = f"{before.refused} was refused {before.waited + 1} updates ago, longer intervals are tried again"
    elif after.refresh in after.costs:
        own = after.costs[before.refresh]
        why = f"rollout and correction took {own:.3g} times the positions of an exact rollout, {_in_words(after)}"
    else:
        why = f"effective sample size {effective_sample_size:.3g} >= {smallest:g}, a longer interval is tried"
    return f"next update: cache/refresh {before.refresh} -> {after.refresh}: {why}"


def _in_words(pace: Pace) -> str:
    """Says what the interval of a pace takes, whose cost is known."""
    return f"{pace.costs[pace.refresh]:.3g} times at {pace.refresh}"


def _chosen(rungs: Sequence[int], refused: int | None, costs: Mapping[int, float]) -> int:
    """Returns the first allowed rung whose cost is not known, else the cheapest one, the finer of two equal ones."""
    allowed = [rung for rung in rungs if refused is None or rung < refused]
    unknown = [rung for rung in allowed if rung not in costs]
    return unknown[0] if unknown else min(allowed, key=lambda rung: costs[rung])
