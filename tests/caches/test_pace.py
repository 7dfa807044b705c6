"""The rule of the control loop, as a pure function."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlmrl_kit.caches.pace import EXACT, Pace, ladder, next_pace, reason

lengths = st.integers(1, 70)
shares = st.floats(0, 1)


@st.composite
def paces(draw: st.DrawFn, longest: int) -> Pace:
    """A pace that the rule may come to: what is below the refused interval is known from the bottom up."""
    rungs = ladder(longest)
    refused = draw(st.sampled_from([None, *rungs[1:]]))
    allowed = [rung for rung in rungs if refused is None or rung < refused]
    known = allowed[: draw(st.integers(0 if refused is None else len(allowed), len(allowed)))]
    costs = {rung: draw(st.floats(0.01, 1)) for rung in known}
    refresh = draw(st.sampled_from([*known, *allowed[len(known) : len(known) + 1]]))
    return Pace(refresh, refused, draw(st.integers(0, 5)), costs)


def taken(pace: Pace, size: float, cost: float, smallest: float, longest: int, again: int = 7) -> Pace:
    return next_pace(pace, size, cost, smallest=smallest, longest=longest, try_again_after=again)


@given(lengths)
def test_the_ladder_doubles_up_to_the_longest(longest: int) -> None:
    rungs = ladder(longest)
    assert (rungs[0], rungs[-1]) == (1, longest)
    assert all(low < high <= 2 * low for low, high in itertools.pairwise(rungs))


@given(st.data(), lengths, st.one_of(shares, st.just(math.nan)), st.floats(0.01, 1), shares)
def test_it_is_bounded_and_never_takes_what_is_refused(
    data: st.DataObject, longest: int, size: float, cost: float, smallest: float
) -> None:
    pace = data.draw(paces(longest))
    found = taken(pace, size, cost, smallest, longest)
    assert found.refresh in ladder(longest)
    assert found.refused is None or (found.refused > EXACT and found.refresh < found.refused)
    assert all(found.refused is None or rung < found.refused for rung in found.costs)
    if not size >= smallest and pace.refresh > EXACT:
        assert found.refresh < pace.refresh
    else:  # one rung at a time
        rungs = ladder(longest)
        known = max((rungs.index(rung) for rung in found.costs), default=0)
        assert rungs.index(found.refresh) <= known + 1


@given(st.data(), lengths, shares, shares, shares, st.floats(0.01, 1))
def test_a_larger_sample_size_never_makes_it_refresh_more_often(
    data: st.DataObject, longest: int, one: float, other: float, smallest: float, unit: float
) -> None:
    """Where longer intervals cost less: with a cost that rises it may rightly go back to a shorter one."""
    pace = data.draw(paces(longest))
    cost = unit / pace.refresh
    pace = replace(pace, costs={rung: unit / rung for rung in pace.costs})
    low, high = sorted((one, other))
    found = [taken(pace, size, cost, smallest, longest).refresh for size in (low, high)]
    assert found[0] <= found[1]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[int, dict[int, float], dict[int, float], float]:
    """Intervals, effective sample sizes that fall, costs of any kind, and the smallest acceptable size."""
    longest = draw(lengths)
    rungs = ladder(longest)
    sizes = sorted(draw(st.lists(shares, min_size=len(rungs), max_size=len(rungs))), reverse=True)
    costs = draw(st.lists(st.floats(0.01, 2), min_size=len(rungs), max_size=len(rungs)))
    known = dict(zip(rungs, sizes, strict=True)) | {EXACT: 1.0}
    return longest, known, dict(zip(rungs, costs, strict=True)), draw(st.floats(0.01, 1))


@given(worlds(), st.integers(1, 9))
def test_it_finds_the_cheapest_acceptable_interval_and_stays(
    world: tuple[int, dict[int, float], dict[int, float], float], again: int
) -> None:
    longest, sizes, costs, smallest = world
    rungs = ladder(longest)
    good = [rung for rung in rungs if sizes[rung] >= smallest]
    best, refused = min(good, key=lambda rung: costs[rung]), len(good) < len(rungs)
    pace, path = Pace(), list[int]()
    for _ in range(4 * len(rungs) + 4 * again):
        path.append(pace.refresh)
        pace = taken(pace, sizes[pace.refresh], costs[pace.refresh], smallest, longest, again)
    settled = path[len(rungs) :]
    assert path[: len(good)] == good  # exact first, then a rung at a time
    if not refused:
        assert set(settled) == {best}
        return
    bad = rungs[len(good)]
    assert set(settled) == {best, bad}
    tries = [place for place, rung in enumerate(settled) if rung == bad]
    assert {after - before for before, after in itertools.pairwise(tries)} <= {again + 1}


@given(worlds(), st.integers(1, 9), st.integers(0, 20))
def test_it_goes_down_at_once_where_drift_grows(
    world: tuple[int, dict[int, float], dict[int, float], float], again: int, updates: int
) -> None:
    """Where only exact rollouts are good enough it goes down to them, whatever it learned, and tries now and then."""
    longest, sizes, costs, smallest = world
    pace = Pace()
    for _ in range(updates):
        pace = taken(pace, sizes[pace.refresh], costs[pace.refresh], smallest, longest, again)
    path, learning = [], 2 * len(ladder(longest))  # each rung is found to be bad once, after an exact update at most
    for _ in range(learning + 3 * again + 6):
        path.append(pace.refresh)
        exact = pace.refresh == EXACT
        pace = taken(pace, 1.0 if exact else math.nan, 1.0 if exact else 0.5, smallest, longest, again)
    assert all(EXACT in (high, low) or low < high for high, low in itertools.pairwise(path))
    settled = [(exact, len([*run])) for exact, run in itertools.groupby(path[learning:], lambda rung: rung == EXACT)]
    for exact, length in settled[1:-1]:
        assert length >= again if exact else length == 1


@pytest.mark.parametrize(
    ("pace", "size", "cost", "said"),
    [
        (Pace(), 1.0, 1.0, "1 -> 2: effective sample size 1 >= 0.5, a longer interval is tried"),
        (
            Pace(4, costs={1: 1.0, 2: 1.1}),
            0.43,
            0.6,
            "4 -> 1: effective sample size 0.43 < 0.5; of shorter intervals it takes the fewest positions, 1 ",
        ),
        (Pace(4, costs={1: 1.0, 2: 0.7}), math.nan, 0.6, "4 -> 2: effective sample size nan < 0.5"),
        (
            Pace(8, costs={1: 1.0, 2: 1.3, 4: 1.2}),
            0.9,
            1.125,
            "8 -> 1: rollout and correction took 1.12 times the positions of an exact rollout, 1 times at 1",
        ),
        (Pace(2, 4, 6, {1: 1.0, 2: 0.7}), 0.9, 0.7, "2 -> 4: 4 was refused 7 updates ago, longer intervals are tried"),
        (Pace(2, 4, 5, {1: 1.0, 2: 0.7}), 0.9, 0.7, None),
        (Pace(1, 2, 1, {1: 1.0}), 1.0, 1.0, None),
    ],
)
def test_it_says_why_the_interval_changes(pace: Pace, size: float, cost: float, said: str | None) -> None:
    found = reason(pace, taken(pace, size, cost, 0.5, 8), size, 0.5)
    assert found is None if said is None else str(found).startswith(f"next update: cache/refresh {said}")


@given(st.data(), lengths, shares, shares, st.floats(0.01, 1))
def test_it_says_so_whenever_it_changes(
    data: st.DataObject, longest: int, size: float, smallest: float, cost: float
) -> None:
    pace = data.draw(paces(longest))
    found = taken(pace, size, cost, smallest, longest)
    said = reason(pace, found, size, smallest)
    assert (said is None) == (found.refresh == pace.refresh)
    assert (pace.refresh > EXACT and size < smallest) == (" < " in str(said))
