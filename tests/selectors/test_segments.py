"""Selectors of segments: cut by plain loops, every step in exactly one segment, limits equal to other selectors."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from dlmrl_kit.core.keys import SELECTED_END, STEP_VALID
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.selectors.equal_segments import EqualSegments
from dlmrl_kit.selectors.k_steps import FirstK
from dlmrl_kit.selectors.shrunk_steps import ShrunkSteps
from dlmrl_kit.selectors.whole_sequence import WholeSequence

STEP, WEIGHT = ("selected", "step"), ("selected", "weight")
Segment = tuple[int, int, float]
fast = settings(max_examples=60, deadline=None)
lengths = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any)


def trajectory(steps: list[int], spare: int = 0, dtype: torch.dtype = torch.float32) -> TensorDict:
    """Rows of so many steps; entropies past the end are NaN."""
    width = max(steps) + spare
    valid = torch.arange(width) < torch.tensor(steps)[:, None]
    entropy = torch.ones(valid.shape, dtype=dtype).masked_fill(~valid, torch.nan)
    return TensorDict({"step": {"valid": valid, "entropy": entropy}}, [len(steps)])


def run(selector: Selector, data: TensorDict) -> TensorDict:
    return selector(data.clone(), keys=[SELECTED_END])  # type: ignore[return-value]


def segments(selector: Selector, data: TensorDict) -> list[list[Segment]]:
    """Start, end and weight of the used entries of each row; the others must be zero and last."""
    found = run(selector, data)
    rows = []
    for step, end, weight in zip(
        found[STEP].tolist(), found[SELECTED_END].tolist(), found[WEIGHT].tolist(), strict=True
    ):
        used = sum(w != 0 for w in weight)
        assert all(weight[:used])
        assert step[used:] == [0] * (len(step) - used)
        rows.append(list(zip(step, end, weight, strict=True))[:used])
    return rows


def equal_segments(steps: int, n: int) -> list[Segment]:
    """Boundary i is at i * steps / n, rounded down; empty segments are left out."""
    cuts = [steps * i // n for i in range(n + 1)]
    return [(a, b, 1.0) for a, b in itertools.pairwise(cuts) if a < b]


def shrunk_steps(steps: int, shrink: int) -> list[Segment]:
    """Consecutive steps are put together until there are ``shrink`` of them."""
    found: list[list[int]] = []
    for step in range(steps):
        if not found or len(found[-1]) == shrink:
            found.append([])
        found[-1].append(step)
    return [(group[0], group[-1] + 1, 1.0) for group in found]


def whole_sequence(steps: int, draws: int) -> list[Segment]:
    weight = torch.tensor(1 / draws, dtype=torch.float32).item()
    return [(0, steps, weight)] * draws if steps else []


CASES: dict[str, tuple[Callable[[int], Selector], Callable[[int, int], list[Segment]]]] = {
    "EqualSegments": (EqualSegments, equal_segments),
    "ShrunkSteps": (ShrunkSteps, shrunk_steps),
    "WholeSequence": (WholeSequence, whole_sequence),
}
every = pytest.mark.parametrize("name", CASES)


@every
@fast
@given(lengths, st.integers(0, 2), st.integers(1, 11))
def test_equals_the_loop(name: str, steps: list[int], spare: int, number: int) -> None:
    make, loop = CASES[name]
    data = trajectory(steps, spare)
    assert segments(make(number), data) == [loop(n, number) for n in steps]


@every
@fast
@given(lengths, st.integers(0, 2), st.integers(1, 11))
def test_every_step_is_in_segments_of_total_weight_one(name: str, steps: list[int], spare: int, number: int) -> None:
    for n, row in zip(steps, segments(CASES[name][0](number), trajectory(steps, spare)), strict=True):
        total = [sum(weight for start, end, weight in row if start <= step < end) for step in range(n + 3)]
        assert total == pytest.approx([1.0] * n + [0.0] * 3)


@every
@fast
@given(lengths, st.integers(1, 11))
def test_contract(name: str, steps: list[int], number: int) -> None:
    selector, data = CASES[name][0](number), trajectory(steps)
    before = data.clone()
    result = selector(data)
    assert result is data
    assert set(data.keys(True, True)) == set(before.keys(True, True)) | {STEP, WEIGHT}, "end only on demand"
    assert torch.equal(data[STEP_VALID], before[STEP_VALID])
    assert (data[STEP].dtype, data[WEIGHT].dtype) == (torch.int64, torch.float32)
    asked = run(selector, before)
    assert asked[SELECTED_END].dtype == torch.int64
    assert asked[SELECTED_END].shape == asked[STEP].shape == asked[WEIGHT].shape
    asked[SELECTED_END] += 1  # memory of its own
    assert run(selector, trajectory(steps, dtype=torch.float64))[WEIGHT].dtype == torch.float64
    order = list(reversed(range(len(steps))))
    assert torch.equal(run(selector, before[order])[STEP], asked[STEP][order])


def test_entries_do_not_depend_on_the_batch_where_their_number_is_fixed() -> None:
    for number in (1, 3, 6):
        assert run(WholeSequence(number), trajectory([2, 5]))[STEP].shape == (2, number)
        for steps in ([5, 1], [1, 1], [5, 5]):
            data = trajectory(steps, spare=5 - max(steps))
            assert run(EqualSegments(number), data)[STEP].shape == (2, min(number, 5))


def test_limits_equal_other_selectors() -> None:
    data = trajectory([7, 3, 1, 7], spare=1)
    single = segments(AllSteps(), data)
    assert single == [[(t, t + 1, 1.0) for t in range(n)] for n in (7, 3, 1, 7)]
    assert segments(ShrunkSteps(1), data) == single
    assert segments(EqualSegments(7), data) == segments(EqualSegments(50), data) == single
    whole = segments(WholeSequence(), data)
    assert whole == [[(0, n, 1.0)] for n in (7, 3, 1, 7)]
    assert (
        segments(EqualSegments(1), data) == segments(ShrunkSteps(7), data) == segments(ShrunkSteps(99), data) == whole
    )


def test_other_selectors_choose_segments_of_one_step() -> None:
    assert segments(FirstK(2), trajectory([3, 1])) == [[(0, 1, 1.0), (1, 2, 1.0)], [(0, 1, 1.0)]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (EqualSegments, r"EqualSegments\.n must be at least 1, got 0"),
        (ShrunkSteps, r"ShrunkSteps\.shrink must be at least 1, got 0"),
        (WholeSequence, r"WholeSequence\.draws must be at least 1, got 0"),
    ],
)
def test_bad_arguments(make: Callable[[int], Selector], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(0)
