"""Countdown: examples and known scores."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from support.tasks import COUNTDOWN, SMALL, TARGET

from dlmrl_kit.scoring.arithmetic import value_of
from dlmrl_kit.tasks.base import Example, split_of
from dlmrl_kit.tasks.countdown import Countdown


@pytest.mark.parametrize(
    ("completion", "format_", "solved"),
    [
        ("71+33+12", 1, 1),
        ("12+(33+71)", 1, 1),
        (" 12 - -33 + 71 ", 1, 1),
        ("71+33-12", 1, 0),
        ("71*33*12", 1, 0),
        ("-71-33-12", 1, 0),
        ("116", 0, 0),
        ("71+33", 0, 0),
        ("71+33+12+0", 0, 0),
        ("71+33+12*1", 0, 0),
        ("71+33+6+6", 0, 0),
        ("71+71-71+33+12", 0, 0),
        ("71+33+12=116", 0, 0),
        ("71+33+12:", 0, 0),
        ("71/(33-33)+12", 0, 0),
        ("12/(71-71)+33", 0, 0),
    ],
)
def test_countdown_known_scores(completion: str, format_: int, solved: int) -> None:
    expected = {"format": format_, "solved": solved, "reward": 0.9 * solved + 0.1 * format_}
    assert COUNTDOWN.score(completion, TARGET) == pytest.approx(expected)


def test_countdown_repeated_numbers_and_exactness() -> None:
    twice = Example("5 5 2=20:", "(5+5)*2")
    assert COUNTDOWN.score("(5+5)*2", twice)["solved"] == 1
    assert COUNTDOWN.score("(5+2)*2", twice)["format"] == 0
    thirds = Example("1 3 3=1:", "1/3*3")
    assert COUNTDOWN.score("1/3*3", thirds)["solved"] == 1
    # Equal in floating point, not exactly: (10**6 * 10**6 * 10**6 + 1) / 10**18 is not 1.
    large = Example("1000000 1000000 1000000 1 1000000 1000000 1000000=1:", "")
    almost = "(1000000*1000000*1000000+1)/1000000/1000000/1000000"
    assert eval(almost) == 1.0
    assert COUNTDOWN.score(almost, large) == pytest.approx({"format": 1, "solved": 0, "reward": 0.1})


def test_countdown_division_by_zero_with_the_right_numbers_has_no_format() -> None:
    example = Example("4 2 2=8:", "4*(2+2)/2")
    assert COUNTDOWN.score("4/(2-2)", example) == {"format": 0, "solved": 0, "reward": 0}


def test_countdown_examples_keep_to_their_ranges() -> None:
    task = Countdown(2, 4, min_value=2, max_value=12, min_target=5, max_target=60, **SMALL)
    lengths = set()
    for index in range(30):
        example = task.example("train", index)
        given_numbers, target = example.meta["numbers"], example.meta["target"]
        assert example.prompt == f"{' '.join(map(str, given_numbers))}={target}:"
        assert all(2 <= number <= 12 for number in given_numbers)
        assert 5 <= target <= 60
        assert " " not in example.answer
        assert value_of(example.answer) == target
        lengths.add(len(given_numbers))
    assert lengths == {2, 3, 4}


def test_countdown_order_of_the_numbers_does_not_make_another_example() -> None:
    orders = [Example(f"{' '.join(order)}=116:", "") for order in itertools.permutations(("71", "33", "12"))]
    assert len({COUNTDOWN.canonical(example) for example in orders}) == 1
    assert len({split_of(COUNTDOWN.canonical(example)) for example in orders}) == 1


def test_countdown_unsuitable_candidates_are_dropped() -> None:
    class Fake:
        def __getitem__(self, number: int) -> dict[str, Any]:
            if number == 0:
                raise ValueError("Failed to generate")
            right = {"numbers": [2, 3], "target": 6, "expression": "2 * 3"}
            return {"metadata": {**right, "expression": "2 + 3"} if number == 1 else right}

    task = Countdown()
    task._dataset = Fake()
    assert [task.candidate(0), task.candidate(1)] == [None, None]
    assert task.candidate(2) == Example("2 3=6:", "2*3", {"numbers": [2, 3], "target": 6})
